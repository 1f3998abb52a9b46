-- ARGV: now, queue, limit, offset. Answers of each with its id, state, due ms, deliveries, message.
local now, queue, limit, offset = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local answer = {}

local function show(ids, state, step)
  for index = 1, #ids, step do
    local id, past = ids[index], call('HGET', P .. 'h', ids[index])
    local deliveries = past and struct.unpack('>I4', past, 17) or 0
    answer[#answer + 1] = {
      id, state, step == 2 and ids[index + 1] or '', deliveries, call('HGET', P .. 'm', id),
    }
  end
end

local function part(size, read, key, state, ...)
  local first, wanted = offset, limit - #answer
  local there = call(size, key)
  offset = math.max(0, offset - there)
  if wanted > 0 and first < there then
    show(call(read, key, first, first + wanted - 1, ...), state, select('#', ...) + 1)
  end
end

move_on(queue, now)
flush()
for priority = 9, 0, -1 do
  part('ZCARD', 'ZRANGE', lane('b', priority, queue), 'ready')
  part('LLEN', 'LRANGE', lane('r', priority, queue), 'ready')
end
part('ZCARD', 'ZRANGE', P .. 'd:' .. queue, 'delayed', 'WITHSCORES')
part('ZCARD', 'ZRANGE', P .. 'e:' .. queue, 'leased', 'WITHSCORES')
return answer
