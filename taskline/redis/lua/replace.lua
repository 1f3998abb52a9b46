-- ARGV: now, queue, number of receipts, receipts; then the successor and its deliveries of each.
local now, queue, number = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local kept, lost = held(4, 3 + number)
for _, each in ipairs(kept) do
  local index = 4 + number + 2 * (each.index - 4)
  local value = ARGV[index]
  local _, _, deliveries = struct.unpack('>ddI4I4', each.past)
  deliveries = math.max(deliveries, tonumber(ARGV[index + 1]))
  call('ZREM', P .. 'e:' .. queue, each.id)
  call('HSET', P .. 'm', each.id, value)
  call('HSET', P .. 'h', each.id, history(0, deliveries, 0))
  enqueue(each.id, value, now)
end
flush()
return lost
