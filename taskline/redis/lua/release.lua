-- ARGV: now, delay ms, queue, receipts.
local now, delay, queue = clock(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local kept, lost = held(4, #ARGV)
for _, each in ipairs(kept) do
  local _, place, deliveries, losses = struct.unpack('>ddI4I4', each.past)
  call('HSET', P .. 'h', each.id, history(place, deliveries, losses))
  call('ZREM', P .. 'e:' .. queue, each.id)
  if delay > 0 then
    hold(each.id, queue, now + delay)
  else
    put_back(each.id, each.priority, queue, place)
  end
end
flush()
return lost
