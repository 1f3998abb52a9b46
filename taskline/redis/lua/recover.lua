-- ARGV: now, consumer, token; ids that were started. Hands back what the consumer holds of
-- greater tokens; answers how many. With the token 0 that is everything.
local now, consumer, after = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local started, number = {}, 0
for index = 4, #ARGV do started[ARGV[index]] = true end
for _, queue in ipairs(call('SMEMBERS', P .. 'q')) do
  local ids = call('ZRANGE', P .. 'e:' .. queue, 0, -1)
  for first = 1, #ids, SOME do
    local some = {unpack(ids, first, math.min(first + SOME - 1, #ids))}
    for index, past in ipairs(call('HMGET', P .. 'h', unpack(some))) do
      if past and past:sub(25) == consumer then
        local id = some[index]
        local token, place, deliveries, lost = struct.unpack('>ddI4I4', past)
        if token > after then
          if started[id] then lost = lost + 1 end
          call('HSET', P .. 'h', id, history(place, deliveries, lost))
          call('ZREM', P .. 'e:' .. queue, id)
          put_back(id, priority_of(call('HGET', P .. 'm', id)), queue, place)
          number = number + 1
        end
      end
    end
  end
end
flush()
return number
