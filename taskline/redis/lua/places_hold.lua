-- places_hold
-- ARGV: ttl in ms; for each claim: name, limit, then three times a number of holders and
-- each of them, an id and a run: those that give their places up, those that renew them, those
-- that want some. Answers with the ids that have places of those that renewed and wanted.
local ttl, now, at = tonumber(ARGV[1]), clock(''), 2
local ending = string.format('%.0f', now + ttl)

local function holders()
  local number = tonumber(ARGV[at])
  local first = at + 1
  at = first + 2 * number
  return first, at - 1
end

local answers = {}
while at <= #ARGV do
  local ends, runs = P .. 'p:' .. ARGV[at], P .. 'i:' .. ARGV[at]
  local limit = tonumber(ARGV[at + 1])
  at = at + 2
  for _, id in ipairs(call('ZRANGEBYSCORE', ends, '-inf', now)) do
    call('ZREM', ends, id)
    call('HDEL', runs, id)
  end
  local held = {}
  local first, last = holders()
  for index = first, last, 2 do
    if call('HGET', runs, ARGV[index]) == ARGV[index + 1] then
      call('ZREM', ends, ARGV[index])
      call('HDEL', runs, ARGV[index])
    end
  end
  first, last = holders()
  for index = first, last, 2 do
    if call('HGET', runs, ARGV[index]) == ARGV[index + 1] then
      call('ZADD', ends, ending, ARGV[index])
      held[#held + 1] = ARGV[index]
    end
  end
  first, last = holders()
  for index = first, last, 2 do
    local id = ARGV[index]
    if call('HEXISTS', runs, id) == 1 or call('ZCARD', ends) < limit then
      call('ZADD', ends, ending, id)
      call('HSET', runs, id, ARGV[index + 1])
      held[#held + 1] = id
    end
  end
  if #held > 0 then
    for _, key in ipairs({ends, runs}) do
      if call('PTTL', key) < ttl then call('PEXPIRE', key, ttl) end
    end
  end
  answers[#answers + 1] = held
end
return answers
