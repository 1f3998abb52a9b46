-- ARGV: now, limit, lease ms, consumer, the server's ms until which this is wanted or '', queues.
-- Answers '>ddd' ms until something may come due or end (-1 if nothing will), now, cursor of the
-- revocations; then of each message '>HI4I4I4' sizes, deliveries, lost; token, id, message.
local now, limit, lease, consumer = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local QUEUES = 6
if ARGV[5] ~= '' and now > tonumber(ARGV[5]) then
  -- Sent along with a wait that took longer than whoever waits may live: others are woken.
  for index = QUEUES, #ARGV do ring(ARGV[index]) end
  flush()
  return struct.pack('>ddd', 0, now, 0)
end
local BYTES = 4194304
local out, size, taken = {''}, 0, 0

local function take(backs, fronts, number)
  if call('EXISTS', unpack(backs)) == 0 then
    local keys = {unpack(fronts)}
    keys[11], keys[12], keys[13] = 'LEFT', 'COUNT', number
    local found = call('LMPOP', 10, unpack(keys))
    return found and found[2] or {}
  end
  for lane_number = 1, 10 do
    local popped = call('ZPOPMIN', backs[lane_number], number)
    if #popped > 0 then
      local ids = {}
      for index = 1, #popped, 2 do ids[#ids + 1] = popped[index] end
      return ids
    end
    local ids = call('LPOP', fronts[lane_number], number)
    if ids and #ids > 0 then return ids end
  end
  return {}
end

local function lease_out(queue, ids)
  local first = tokens(#ids, now)
  local values, pasts = call('HMGET', P .. 'm', unpack(ids)), call('HMGET', P .. 'h', unpack(ids))
  local ends, records = {}, {}
  for number, id in ipairs(ids) do
    local value, past = values[number], pasts[number]
    local token, place, deliveries, lost = first + number, 0, 0, 0
    if past then place, deliveries, lost = struct.unpack('>dI4I4', past, 9) end
    if place == 0 then place = token end
    local bare = struct.pack('>d', token)
    records[#records + 1] = id
    records[#records + 1] = bare .. struct.pack('>dI4I4', place, deliveries + 1, lost) .. consumer
    ends[#ends + 1] = now + lease
    ends[#ends + 1] = id
    out[#out + 1] = struct.pack('>HI4I4I4', #id, #value, deliveries + 1, lost) .. bare .. id .. value
    size = size + #value
  end
  call('HSET', P .. 'h', unpack(records))
  call('ZADD', P .. 'e:' .. queue, unpack(ends))
  taken = taken + #ids
end

for index = QUEUES, #ARGV do move_on(ARGV[index], now) end
flush()
for index = QUEUES, #ARGV do
  local queue = ARGV[index]
  local backs, fronts = {}, {}
  for priority = 9, 0, -1 do
    backs[#backs + 1] = lane('b', priority, queue)
    fronts[#fronts + 1] = lane('r', priority, queue)
  end
  local slice, empty = 16, false
  while taken < limit and size < BYTES and not empty do
    local ids = take(backs, fronts, math.min(slice, limit - taken))
    if #ids > 0 then
      lease_out(queue, ids)
      slice = math.max(1, math.min(SOME, math.floor((BYTES - size) * taken / math.max(size, 1))))
    end
    empty = #ids == 0
  end
  -- The bell rings on for what is left, and stops where nothing is.
  if empty then
    call('DEL', P .. 'w:' .. queue)
  else
    call('ZADD', P .. 'w:' .. queue, 0, '1')
  end
end
local next_event = -1
for index = QUEUES, #ARGV do
  for _, kind in ipairs({'d:', 'e:'}) do
    local first = call('ZRANGE', P .. kind .. ARGV[index], 0, 0, 'WITHSCORES')
    if first[2] then
      local after = math.max(0, tonumber(first[2]) - now)
      if next_event < 0 or after < next_event then next_event = after end
    end
  end
end
out[1] = struct.pack('>ddd', next_event, now, tonumber(call('GET', P .. 'u') or 0))
return table.concat(out)
