-- ARGV: now, limit, lease ms, consumer, the server's ms until which this is wanted or '', queues.
-- Answers '>ddd' ms until something may come due or end (-1 if nothing will), now, cursor of the
-- revocations; then of each message '>HI4I4I4d' sizes, deliveries, lost, token; id, message.
local now, limit, lease, consumer = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local pack = struct.pack
local QUEUES = 6
if ARGV[5] ~= '' and now > tonumber(ARGV[5]) then
  -- Sent along with a wait that took longer than whoever waits may live: others are woken.
  for index = QUEUES, #ARGV do ring(ARGV[index]) end
  flush()
  return pack('>ddd', 0, now, 0)
end
local BYTES = 4194304
local PRIORITIES = {'9', '8', '7', '6', '5', '4', '3', '2', '1', '0'}
local lease_end = string.format('%.0f', now + lease)
local out, parts, size, taken = {''}, 1, 0, 0
local next_event = -1

-- When the first delayed message comes due or the first lease ends.
local function first_event(queue)
  local due = call('ZRANGE', P .. 'd:' .. queue, 0, 0, 'WITHSCORES')[2]
  local ends = call('ZRANGE', P .. 'e:' .. queue, 0, 0, 'WITHSCORES')[2]
  return math.min(tonumber(due or math.huge), tonumber(ends or math.huge))
end

local function note_event(at)
  if at < math.huge then
    local after = math.max(0, at - now)
    if next_event < 0 or after < next_event then next_event = after end
  end
end

-- Some ids, and whether there are none left.
local function take(backs, fronts, number)
  if call('EXISTS', unpack(backs)) == 0 then
    fronts[11], fronts[12], fronts[13] = 'LEFT', 'COUNT', number
    local found = call('LMPOP', 10, unpack(fronts))
    local ids = found and found[2] or {}
    return ids, #ids < number and (#ids == 0 or call('EXISTS', unpack(fronts, 1, 10)) == 0)
  end
  for index = 1, 10 do
    local popped = call('ZPOPMIN', backs[index], number)
    if #popped > 0 then
      local ids = {}
      for each = 1, #popped, 2 do ids[#ids + 1] = popped[each] end
      return ids, false
    end
    local ids = call('LPOP', fronts[index], number)
    if ids and #ids > 0 then return ids, false end
  end
  return {}, true
end

local function lease_out(queue, ids)
  local number = #ids
  local first = tokens(number, now)
  local values, pasts = call('HMGET', P .. 'm', unpack(ids)), call('HMGET', P .. 'h', unpack(ids))
  local ends, records = {}, {}
  for index = 1, number do
    local id, value, past = ids[index], values[index], pasts[index]
    local token, place, deliveries, lost = first + index, 0, 0, 0
    if past then place, deliveries, lost = struct.unpack('>dI4I4', past, 9) end
    if place == 0 then place = token end
    deliveries = deliveries + 1
    records[2 * index - 1] = id
    records[2 * index] = pack('>ddI4I4', token, place, deliveries, lost) .. consumer
    ends[2 * index - 1] = lease_end
    ends[2 * index] = id
    out[parts + 1] = pack('>HI4I4I4d', #id, #value, deliveries, lost, token)
    out[parts + 2] = id
    out[parts + 3] = value
    parts = parts + 3
    size = size + #value
  end
  call('HSET', P .. 'h', unpack(records))
  call('ZADD', P .. 'e:' .. queue, unpack(ends))
  taken = taken + number
end

for index = QUEUES, #ARGV do
  local queue = ARGV[index]
  local at = first_event(queue)
  if at <= now then
    move_on(queue, now)
    at = first_event(queue)
  end
  note_event(at)
end
flush()
for index = QUEUES, #ARGV do
  local queue = ARGV[index]
  local backs, fronts = {}, {}
  for number, priority in ipairs(PRIORITIES) do
    backs[number] = P .. 'b' .. priority .. ':' .. queue
    fronts[number] = P .. 'r' .. priority .. ':' .. queue
  end
  local slice, empty = 16, false
  while taken < limit and size < BYTES and not empty do
    local ids
    ids, empty = take(backs, fronts, math.min(slice, limit - taken))
    if #ids > 0 then
      lease_out(queue, ids)
      slice = math.max(1, math.min(SOME, math.floor((BYTES - size) * taken / math.max(size, 1))))
    end
  end
  -- The bell rings on for what is left, and stops where nothing is.
  if empty then
    call('DEL', P .. 'w:' .. queue)
  else
    call('ZADD', P .. 'w:' .. queue, 0, '1')
  end
end
if taken > 0 then note_event(now + lease) end
out[1] = pack('>ddd', next_event, now, tonumber(call('GET', P .. 'u') or 0))
return table.concat(out)
