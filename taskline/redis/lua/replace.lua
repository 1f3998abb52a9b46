-- ARGV: now, number of receipts, receipts; then the queue, successor and its deliveries of each.
local now, number = clock(ARGV[1]), tonumber(ARGV[2])
local kept, lost = held(3, 2 + number)
for _, each in ipairs(kept) do
  local index = 3 + number + 3 * (each.index - 3)
  local queue, value = ARGV[index], ARGV[index + 1]
  local _, _, deliveries = struct.unpack('>ddI4I4', each.past)
  deliveries = math.max(deliveries, tonumber(ARGV[index + 2]))
  call('ZREM', P .. 'e:' .. queue, each.id)
  call('HSET', P .. 'm', each.id, value)
  call('HSET', P .. 'h', each.id, history(0, deliveries, 0))
  enqueue(each.id, value, now)
end
flush()
return lost
