-- The words of all scripts. KEYS[1] is the hash tag that all keys of one store begin with:
--   m  hash   id -> message (see taskline/transports/redis/records.py)
--   h  hash   id -> what happened to it: '>ddI4I4' token, place, deliveries, lost; then its consumer
--   s  string the last token           q  set  names of queues
--   r<priority>:<queue>  list  ids, ready       b<priority>:<queue>  zset  given back, by place
--   d:<queue>  zset  delayed, by due ms         e:<queue>  zset  leased, by end ms
--   w:<queue>  zset  one member while somebody should look: workers block on it
--   x  hash   id -> dead letter        c  hash  id -> its deliveries
--   y  zset   dead ids by burial       y:<queue>  the same of one queue
--   o:<id>  string  outcome            v, u, k:<key>  revocations, their cursor, counted sets
--   l:<name>  hash  lock (see lock.lua)         g:<key>  hash  v value, t token of the call that set it
--   t:<name>  string  token bucket (see bucket_take.lua)
--   p:<name>  zset  places of a semaphore: ids, by end ms      i:<name>  hash  id -> its run
local P = KEYS[1]
local call = redis.call
local SOME = 1000

local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The first of `number` tokens. They grow even when a crash took the last ones back.
local function tokens(number, now)
  local first = math.max(tonumber(call('GET', P .. 's') or 0) + 1, math.floor(now * 1000))
  call('SET', P .. 's', string.format('%.0f', first + number))
  return first
end

local function queue_of(value)
  local at, size = struct.unpack('>HH', value, 2)
  return value:sub(at + 1, at + size)
end

-- '0' to '9'. In a message that has an eta the priority is written as 'a' to 'j'.
local function priority_of(value)
  local code = value:byte(1)
  return string.char(code >= 97 and code - 49 or code)
end

local function lane(kind, priority, queue)
  return P .. kind .. priority .. ':' .. queue
end

local FREE = struct.pack('>d', 0)

local function history(place, deliveries, lost)
  return FREE .. struct.pack('>dI4I4', place, deliveries, lost)
end

-- Collects what becomes ready, so that a batch costs few calls. `flush` ends it.
local lanes, bells = {}, {}

local function ring(queue)
  bells[queue] = true
end

local function to_tail(id, value, queue)
  local key = lane('r', priority_of(value), queue)
  local ids = lanes[key]
  if not ids then
    ids = {queue = queue}
    lanes[key] = ids
  end
  ids[#ids + 1] = id
  bells[queue] = true
end

local function flush()
  for key, ids in pairs(lanes) do
    for first = 1, #ids, SOME do
      local last = math.min(first + SOME - 1, #ids)
      if call('RPUSH', key, unpack(ids, first, last)) == last - first + 1 then
        call('SADD', P .. 'q', ids.queue)
      end
    end
  end
  lanes = {}
  for queue in pairs(bells) do call('ZADD', P .. 'w:' .. queue, 0, '1') end
end

local function hold(id, queue, due)
  local key = P .. 'd:' .. queue
  call('ZADD', key, due, id)
  call('SADD', P .. 'q', queue)
  -- Whoever waits has to wait for less now.
  if call('ZRANGE', key, 0, 0)[1] == id then ring(queue) end
end

-- Makes a stored message wait: until its eta, or at the tail of its lane.
local function enqueue(id, value, now)
  local queue = queue_of(value)
  if value:byte(1) >= 97 then
    local due = struct.unpack('>I6', value, 6)
    if due > now then return hold(id, queue, due) end
  end
  to_tail(id, value, queue)
end

-- Back to the place it had in its lane.
local function put_back(id, priority, queue, place)
  call('ZADD', lane('b', priority, queue), string.format('%.0f', place), id)
  ring(queue)
end

-- Makes ready what came due and whose lease ended; some at a time.
local function move_on(queue, now)
  local due = call('ZRANGEBYSCORE', P .. 'd:' .. queue, '-inf', now, 'LIMIT', 0, SOME)
  local ended = call('ZRANGEBYSCORE', P .. 'e:' .. queue, '-inf', now, 'LIMIT', 0, SOME)
  for _, group in ipairs({due, ended}) do
    for _, id in ipairs(group) do
      local value, past = call('HGET', P .. 'm', id), call('HGET', P .. 'h', id)
      local place, deliveries, lost = 0, 0, 0
      if past then
        place, deliveries, lost = struct.unpack('>dI4I4', past, 9)
      end
      if group == ended then
        call('HSET', P .. 'h', id, history(place, deliveries, lost + 1))
      end
      if place > 0 then
        put_back(id, priority_of(value), queue, place)
      else
        to_tail(id, value, queue)
      end
    end
  end
  if #due > 0 then call('ZREM', P .. 'd:' .. queue, unpack(due)) end
  if #ended > 0 then call('ZREM', P .. 'e:' .. queue, unpack(ended)) end
end

-- The deliveries ARGV[first..last] of one queue, each a receipt (token, priority, node, id).
-- Returns those that are held as {id=, priority=, past=, index=}, and the indices of the others.
local function held(first, last)
  local ids, kept, lost = {}, {}, {}
  for index = first, last do ids[#ids + 1] = ARGV[index]:sub(11) end
  if #ids == 0 then return kept, lost end
  local pasts = call('HMGET', P .. 'h', unpack(ids))
  for number, id in ipairs(ids) do
    local receipt, past = ARGV[first + number - 1], pasts[number]
    if past and past:sub(1, 8) == receipt:sub(1, 8) then
      kept[#kept + 1] = {id = id, priority = receipt:sub(9, 9), past = past, index = first + number - 1}
    else
      lost[#lost + 1] = number - 1
    end
  end
  return kept, lost
end

local function ids_of(kept)
  local ids = {}
  for number, each in ipairs(kept) do ids[number] = each.id end
  return ids
end
