-- What Taskline does in a namespace of RSMQ, each call in one step.
--
-- RSMQ's own keys are left as its clients expect them: the set {ns}:QUEUES and, for each
-- queue, the sorted set {ns}:{queue} (id -> milliseconds from which it is visible) and the
-- hash {ns}:{queue}:Q (attributes, and the fields {id}, {id}:rc, {id}:fr).
-- Ours stand beside them, and may be lost without harm to a waiting message:
--   {ns}:{queue}:taskline  hash, RSMQ's id -> a record of what RSMQ has no place for
--   {ns}:{queue}:held      sorted set, RSMQ's id -> milliseconds: the end of our lease
--   {ns}:{queue}:letters   hash of a dead queue, RSMQ's id -> why it is there
--   {ns}:taskline:ids      hash, Taskline's id -> queue/RSMQ's id
--   {ns}:taskline:dead     the same for the dead letters
--
-- KEYS[1] is "{ns}:", ARGV[1] the name of the call, ARGV[2] its arguments in MessagePack.

local P, op, args = KEYS[1], ARGV[1], cmsgpack.unpack(ARGV[2])
local call, floor = redis.call, math.floor
local time = call('TIME')
local us = time[1] * 1000000 + time[2]
local ms = floor(us / 1000)
local IDS, DEAD, QUEUES = P .. 'taskline:ids', P .. 'taskline:dead', P .. 'QUEUES'
local DIGITS = '0123456789abcdefghijklmnopqrstuvwxyz'
local touched = {}

-- The fields of a record. RC is the receive count that HELD speaks of: when a client of
-- another make has received the message since, RSMQ's count is greater.
local ID, BASE, LOST, RC, HELD, CONSUMER, PLACE = 1, 2, 3, 4, 5, 6, 7

local function record(name, rid)
  local raw = call('HGET', P .. name .. ':taskline', rid)
  return raw and cmsgpack.unpack(raw)
end

local function save(name, rid, rec)
  call('HSET', P .. name .. ':taskline', rid, cmsgpack.pack(rec))
end

local function received(name, rid)
  return tonumber(call('HGET', P .. name .. ':Q', rid .. ':rc') or 0)
end

local function new_id(suffix)
  -- The next one of this call is a microsecond younger, so that ids keep the order.
  us = us + 1
  local n, text = us, ''
  repeat
    local digit = n % 36
    text = DIGITS:sub(digit + 1, digit + 1) .. text
    n = floor(n / 36)
  until n == 0
  return text .. suffix
end

local function create(name, vt, delay, maxsize)
  local Q = P .. name .. ':Q'
  if call('HEXISTS', Q, 'vt') == 0 then
    call('HSET', Q, 'vt', vt, 'delay', delay, 'maxsize', maxsize,
      'created', time[1], 'modified', time[1])
    call('SADD', QUEUES, name)
  end
end

local function attribute(name, attr, default)
  return tonumber(call('HGET', P .. name .. ':Q', attr) or default)
end

-- Where the message of a Taskline id is; forgets one that another client has deleted.
local function locate(map, id)
  local at = call('HGET', map, id)
  if not at then return end
  local name, rid = at:match('^(.*)/(.*)$')
  if call('HEXISTS', P .. name .. ':Q', rid) == 1 then return name, rid end
  call('HDEL', map, id)
  call('HDEL', P .. name .. (map == IDS and ':taskline' or ':letters'), rid)
end

local function store(name, rid, body, score)
  call('ZADD', P .. name, score, rid)
  call('HSET', P .. name .. ':Q', rid, body)
  call('HINCRBY', P .. name .. ':Q', 'totalsent', 1)
  touched[name] = true
end

local function remove(name, rid)
  call('ZREM', P .. name, rid)
  call('HDEL', P .. name .. ':Q', rid, rid .. ':rc', rid .. ':fr')
end

-- message: {queue, id, body, due in ms or 0, 22 random characters, deliveries so far}
local function add(message, base, delay)
  local name, id, body, due, suffix = unpack(message, 1, 5)
  local rid = new_id(suffix)
  store(name, rid, body, due > 0 and due or floor(us / 1000) + floor((delay or 0) * 1000))
  save(name, rid, {id, base, 0, 0, 0, '', 0})
  call('HSET', IDS, id, name .. '/' .. rid)
end

local function drop(name, rid, rec)
  remove(name, rid)
  call('ZREM', P .. name .. ':held', rid)
  call('HDEL', P .. name .. ':taskline', rid)
  if rec and call('HGET', IDS, rec[ID]) == name .. '/' .. rid then call('HDEL', IDS, rec[ID]) end
end

-- The record of a message, if this receipt {queue, RSMQ's id, receive count} still holds it.
local function holding(receipt)
  local name, rid, rc = unpack(receipt, 1, 3)
  local rec = record(name, rid)
  if rec and rec[HELD] == 1 and rec[RC] == rc and received(name, rid) == rc
      and call('ZSCORE', P .. name, rid) then
    return rec, name, rid, rc
  end
  if rec and call('HEXISTS', P .. name .. ':Q', rid) == 0 then drop(name, rid, rec) end
end

local function free(name, rid, rec, due)
  rec[HELD] = 0
  save(name, rid, rec)
  call('ZREM', P .. name .. ':held', rid)
  call('ZADD', P .. name, due or rec[PLACE], rid)
  touched[name] = true
end

-- Whether somebody, of whatever make, holds a message that is hidden until `score`.
local function busy(name, rid, rec, score)
  local rc = received(name, rid)
  return score > ms and rc > 0 and not (rec and rec[HELD] == 0 and rec[RC] == rc)
end

-- The id of a message that Taskline did not send: its own, if it is a frame of Taskline's.
local function id_in(body, rid)
  local line = body:match('^~[^\n]*\n({[^\n]*)\n') or body:match('^({[^\n]*)\n')
  if line then
    local ok, header = pcall(cjson.decode, line)
    if ok and type(header.v) == 'number' and type(header.id) == 'string'
        and type(header.task) == 'string' and type(header.queue) == 'string' then
      return header.id
    end
  end
  return rid
end

local function dead_queues()
  local found = {}
  for _, name in ipairs(call('SMEMBERS', QUEUES)) do
    if name:sub(-5) == '-dead' then found[#found + 1] = name end
  end
  return found
end

local function find_dead(id)
  local name, rid = locate(DEAD, id)
  if name then return name, rid end
  if #id ~= 32 then return end
  for _, each in ipairs(dead_queues()) do
    -- Put there by another client.
    if call('HEXISTS', P .. each .. ':Q', id) == 1
        and call('HEXISTS', P .. each .. ':letters', id) == 0 then
      return each, id
    end
  end
end

-- Removes a dead letter; the deliveries that its message had, or nothing.
local function undead(id)
  local name, rid = find_dead(id)
  if not name then return end
  local raw = call('HGET', P .. name .. ':letters', rid)
  local deliveries = raw and cmsgpack.unpack(raw)[2] or received(name, rid)
  remove(name, rid)
  call('HDEL', P .. name .. ':letters', rid)
  call('HDEL', DEAD, id)
  return deliveries
end

local function shown_letter(name, rid)
  local Q = P .. name .. ':Q'
  local raw = call('HGET', P .. name .. ':letters', rid)
  local letter = raw and cmsgpack.unpack(raw) or {rid, 0, ''}
  return {name, rid, call('HGET', Q, rid) or '', letter[3]}
end

local function too_long(messages, maxsize)
  for _, message in ipairs(messages) do
    local most = attribute(message[1], 'maxsize', maxsize)
    if most ~= -1 and #message[3] > most then return {message[1], #message[3], most} end
  end
end

-- Calls f(item, index) for each; the indexes of those for which it answered false.
local function refused(items, f)
  local lost = {}
  for index, item in ipairs(items) do
    if not f(item) then lost[#lost + 1] = index - 1 end
  end
  return lost
end

local calls = {}

function calls.send(messages, vt, delay, maxsize, again)
  local wrong = too_long(messages, maxsize)
  if wrong then return {-1, wrong[1], wrong[2], wrong[3]} end
  return refused(messages, function(message)
    local name, id, base = message[1], message[2], message[6]
    if again then
      local deliveries = undead(id)
      if not deliveries then return false end
      base = math.max(base, deliveries)
    elseif call('HEXISTS', DEAD, id) == 1 then
      local dead, rid = locate(DEAD, id)
      if dead then
        base = math.max(base, cmsgpack.unpack(call('HGET', P .. dead .. ':letters', rid))[2])
      end
    end
    if not locate(IDS, id) then
      create(name, vt, delay, maxsize)
      add(message, base, attribute(name, 'delay', 0))
    end
    return true
  end)
end

function calls.receive(names, limit, lease, consumer)
  local taken, next_due = {}, -1
  for index, name in ipairs(names) do
    local Q, room = P .. name .. ':Q', limit - #taken
    call('ZREMRANGEBYSCORE', P .. name .. ':held', '-inf', ms)
    local found = room > 0 and call('ZRANGEBYSCORE', P .. name, '-inf', ms,
      'WITHSCORES', 'LIMIT', 0, room) or {}
    for at = 1, #found, 2 do
      local rid, score = found[at], tonumber(found[at + 1])
      local body = call('HGET', Q, rid)
      if not body then
        remove(name, rid)
      else
        local rc = call('HINCRBY', Q, rid .. ':rc', 1)
        call('HINCRBY', Q, 'totalrecv', 1)
        if rc == 1 then call('HSET', Q, rid .. ':fr', ms) end
        local rec = record(name, rid)
        if not rec then
          rec = {id_in(body, rid), 0, 0, 0, 0, '', 0}
          call('HSETNX', IDS, rec[ID], name .. '/' .. rid)
        end
        -- Every handing-over that did not end in a release was lost, other clients' too.
        rec[LOST] = rec[LOST] + rec[HELD] + (rc - 1 - rec[RC])
        rec[RC], rec[HELD], rec[CONSUMER] = rc, 1, consumer
        if rec[PLACE] == 0 then rec[PLACE] = score end
        save(name, rid, rec)
        call('ZADD', P .. name, ms + lease, rid)
        call('ZADD', P .. name .. ':held', ms + lease, rid)
        taken[#taken + 1] = {index - 1, rid, rec[ID], body, rec[BASE] + rc, rec[LOST], rc}
      end
    end
    if #taken == 0 then
      local soon = call('ZRANGE', P .. name, 0, 0, 'WITHSCORES')
      if soon[2] then
        local left = math.max(0, tonumber(soon[2]) - ms)
        if next_due < 0 or left < next_due then next_due = left end
      end
    end
  end
  return {next_due, taken}
end

function calls.ack(receipts)
  return refused(receipts, function(receipt)
    local rec, name, rid = holding(receipt)
    if rec then drop(name, rid, rec) end
    return rec
  end)
end

function calls.release(receipts, delay)
  return refused(receipts, function(receipt)
    local rec, name, rid = holding(receipt)
    if rec then free(name, rid, rec, delay > 0 and ms + delay) end
    return rec
  end)
end

function calls.extend(receipts, lease)
  return refused(receipts, function(receipt)
    local rec, name, rid = holding(receipt)
    if rec then
      call('ZADD', P .. name, ms + lease, rid)
      call('ZADD', P .. name .. ':held', ms + lease, rid)
    end
    return rec
  end)
end

function calls.replace(pairs_, vt, delay, maxsize)
  return refused(pairs_, function(pair)
    local rec, name, rid, rc = holding(pair[1])
    if not rec then return false end
    local message = pair[2]
    drop(name, rid, rec)
    if not locate(IDS, message[2]) then
      create(message[1], vt, delay, maxsize)
      add(message, math.max(rec[BASE] + rc, message[6]))
    end
    return true
  end)
end

function calls.bury(burials)
  return refused(burials, function(burial)
    local receipt, dead, id, body, suffix, letter = unpack(burial, 1, 6)
    local rec, name, rid, rc = holding(receipt)
    if not rec then return false end
    drop(name, rid, rec)
    undead(id)
    create(dead, 30, 0, -1)
    local new = new_id(suffix)
    store(dead, new, body, floor(us / 1000))
    call('HSET', P .. dead .. ':letters', new, cmsgpack.pack({id, rec[BASE] + rc, letter}))
    call('HSET', DEAD, id, dead .. '/' .. new)
    return true
  end)
end

function calls.recover(consumer, started)
  local begun, number = {}, 0
  for _, id in ipairs(started) do begun[id] = true end
  for _, name in ipairs(call('SMEMBERS', QUEUES)) do
    for _, rid in ipairs(call('ZRANGEBYSCORE', P .. name .. ':held', '(' .. ms, '+inf')) do
      local rec = record(name, rid)
      if rec and rec[CONSUMER] == consumer and holding({name, rid, rec[RC]}) then
        if begun[rec[ID]] then rec[LOST] = rec[LOST] + 1 end
        free(name, rid, rec)
        number = number + 1
      end
    end
  end
  return number
end

function calls.stats(names)
  if #names == 0 then
    local seen = {}
    for _, name in ipairs(call('SMEMBERS', QUEUES)) do
      local base = name:sub(-5) == '-dead' and name:sub(1, -6) or name
      if not seen[base] then
        seen[base] = true
        names[#names + 1] = base
      end
    end
  end
  local found = {}
  for _, name in ipairs(names) do
    local hidden = call('ZCOUNT', P .. name, '(' .. ms, '+inf')
    local leased = call('ZCOUNT', P .. name .. ':held', '(' .. ms, '+inf')
    local first = call('ZRANGEBYSCORE', P .. name, '-inf', ms, 'WITHSCORES', 'LIMIT', 0, 1)
    found[#found + 1] = {
      name, call('ZCOUNT', P .. name, '-inf', ms), math.max(0, hidden - leased), leased,
      call('ZCARD', P .. name .. '-dead'), first[2] and ms - tonumber(first[2]) or -1,
    }
  end
  return found
end

function calls.peek(name, limit, offset)
  local shown = {}
  if limit < 1 then return shown end
  local found = call('ZRANGE', P .. name, offset, offset + limit - 1, 'WITHSCORES')
  for at = 1, #found, 2 do
    local rid, score = found[at], tonumber(found[at + 1])
    local body = call('HGET', P .. name .. ':Q', rid) or ''
    local rec = record(name, rid)
    local state = score <= ms and 'ready' or busy(name, rid, rec, score) and 'leased' or 'delayed'
    shown[#shown + 1] = {
      rec and rec[ID] or id_in(body, rid), state, score,
      (rec and rec[BASE] or 0) + received(name, rid), body, rid,
    }
  end
  return shown
end

function calls.purge(name, offset, limit)
  local gone, kept = 0, 0
  local found = call('ZRANGE', P .. name, offset, offset + limit - 1, 'WITHSCORES')
  for at = 1, #found, 2 do
    local rid, score = found[at], tonumber(found[at + 1])
    local rec = record(name, rid)
    if busy(name, rid, rec, score) then
      kept = kept + 1
    else
      drop(name, rid, rec)
      gone = gone + 1
    end
  end
  return {gone, kept}
end

function calls.delete(ids)
  return refused(ids, function(id)
    local name, rid = locate(IDS, id)
    if not name then return false end
    local rec = record(name, rid)
    if busy(name, rid, rec, tonumber(call('ZSCORE', P .. name, rid) or 0)) then return false end
    drop(name, rid, rec)
    return true
  end)
end

function calls.letters(dead, limit, offset)
  local found, shown = {}, {}
  for _, name in ipairs(dead == '' and dead_queues() or {dead}) do
    for _, rid in ipairs(call('ZREVRANGE', P .. name, 0, offset + limit - 1)) do
      found[#found + 1] = {name, rid}
    end
  end
  -- An id begins with its time.
  table.sort(found, function(one, two) return one[2] > two[2] end)
  for at = offset + 1, math.min(#found, offset + limit) do
    shown[#shown + 1] = shown_letter(found[at][1], found[at][2])
  end
  return shown
end

function calls.letter(id)
  local name, rid = find_dead(id)
  return name and {shown_letter(name, rid)} or {}
end

function calls.purge_dead(ids)
  return #ids - #refused(ids, undead)
end

-- Forgets what other clients have deleted, a part at each call.
function calls.sweep(ids_cursor, dead_cursor)
  local cursors = {}
  for index, map in ipairs({IDS, DEAD}) do
    local page = call('HSCAN', map, index == 1 and ids_cursor or dead_cursor, 'COUNT', 100)
    cursors[index] = page[1]
    for at = 1, #page[2], 2 do locate(map, page[2][at]) end
  end
  return cursors
end

local answer = calls[op](unpack(args))
for name in pairs(touched) do
  call('PUBLISH', P .. 'rt:' .. name, call('ZCARD', P .. name))
end
return answer
