-- ARGV: now, lease ms, queue, receipts.
local lease_end = clock(ARGV[1]) + tonumber(ARGV[2])
local kept, lost = held(4, #ARGV)
local ends = {}
for number, each in ipairs(kept) do
  ends[2 * number - 1], ends[2 * number] = lease_end, each.id
end
if #ends > 0 then call('ZADD', P .. 'e:' .. ARGV[3], unpack(ends)) end
return lost
