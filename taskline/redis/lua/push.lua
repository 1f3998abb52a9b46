-- What most sends are, without the common words, which cost more than the work: messages that
-- are due now and were never handed over. ARGV: id and message of each.
local P, call = KEYS[1], redis.call
local was_dead = call('EXISTS', P .. 'c') == 1
local lanes = {}
for index = 1, #ARGV, 2 do
  local id, value = ARGV[index], ARGV[index + 1]
  if call('HSETNX', P .. 'm', id, value) == 1 then
    local deliveries = was_dead and tonumber(call('HGET', P .. 'c', id) or 0) or 0
    if deliveries > 0 then
      call('HSET', P .. 'h', id, struct.pack('>ddI4I4', 0, 0, deliveries, 0))
    end
    local at, size = struct.unpack('>HH', value, 2)
    local queue, priority = value:sub(at + 1, at + size), value:sub(1, 1)
    local of_queue = lanes[queue]
    if not of_queue then
      of_queue = {}
      lanes[queue] = of_queue
    end
    local ids = of_queue[priority]
    if ids then
      ids[#ids + 1] = id
    else
      of_queue[priority] = {id}
    end
  end
end
for queue, of_queue in pairs(lanes) do
  for priority, ids in pairs(of_queue) do
    if call('RPUSH', P .. 'r' .. priority .. ':' .. queue, unpack(ids)) == #ids then
      call('SADD', P .. 'q', queue)
    end
  end
  call('ZADD', P .. 'w:' .. queue, 0, '1')
end
return 1
