-- ARGV: now; the queues, or none for all that are known. Answers of each with its name, ready,
-- delayed, leased, dead, and the age of the oldest ready message in ms, or -1.
local now, answer = clock(ARGV[1]), {}
local queues = {unpack(ARGV, 2)}
if #queues == 0 then queues = call('SMEMBERS', P .. 'q') end
for _, queue in ipairs(queues) do
  move_on(queue, now)
  flush()
  local ready, oldest = 0, -1
  for priority = 0, 9 do
    local front, back = lane('r', priority, queue), lane('b', priority, queue)
    local heads = {call('LINDEX', front, 0), call('ZRANGE', back, 0, 0)[1]}
    ready = ready + call('LLEN', front) + call('ZCARD', back)
    for number = 1, 2 do
      local value = heads[number] and call('HGET', P .. 'm', heads[number])
      if value then oldest = math.max(oldest, now - struct.unpack('>I6', value, 6), 0) end
    end
  end
  answer[#answer + 1] = {
    queue, ready, call('ZCARD', P .. 'd:' .. queue), call('ZCARD', P .. 'e:' .. queue),
    call('ZCARD', P .. 'y:' .. queue), math.floor(oldest),
  }
end
return answer
