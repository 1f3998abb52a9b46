-- ARGV: '1' if this was tried before, queue, number of receipts, receipts;
-- then of each outcome its id, the outcome and its ttl in ms. Answers with the numbers of the lost.
local last = 3 + tonumber(ARGV[3])
local kept, lost = held(4, last)
if #kept > 0 then
  local ids = ids_of(kept)
  call('HDEL', P .. 'm', unpack(ids))
  call('HDEL', P .. 'h', unpack(ids))
  call('ZREM', P .. 'e:' .. ARGV[2], unpack(ids))
end
if ARGV[1] == '1' then
  -- What is gone was acknowledged by the attempt whose answer did not arrive.
  local still = {}
  for _, number in ipairs(lost) do
    if call('HEXISTS', P .. 'm', ARGV[4 + number]:sub(11)) == 1 then still[#still + 1] = number end
  end
  lost = still
end
if #ARGV > last then
  local done = {}
  for _, each in ipairs(kept) do done[each.id] = true end
  for index = last + 1, #ARGV, 3 do
    if done[ARGV[index]] then store(ARGV[index], ARGV[index + 1], ARGV[index + 2]) end
  end
end
return lost
