-- bucket_take
-- ARGV: for each ask: bucket, tokens a second, burst, number wanted, seconds ahead, span in seconds,
-- and when those were taken that come back. Answers with the number taken, the tokens left, and the
-- time, of each, as text.
-- As taskline/backends/permits.py does it: a bucket is the time, in us, at which it is empty. One
-- with a span has behind it, with spaces between, that at the pace at which it makes good what was
-- missed, the last part of the span, and what was taken in that and the parts before it, as far as
-- it was any: `parts back:number`.
local SLOTS, KEPT, OVER, PACE, AT_ONCE = 100, 103, 1.05, 1.5, 4
local time = call('TIME')
local now = time[1] * 1000000 + time[2]

local function keep(key, value, us)
  local lasts = math.ceil(us / 1000)
  if lasts > 0 then
    call('SET', key, value, 'PX', string.format('%.0f', lasts))
  else
    call('UNLINK', key)
  end
end

local function take(key, each, burst, wanted, ahead)
  local full = now - burst / each
  local empty = math.max(tonumber((call('GET', key) or ''):match('%S+') or full), full)
  local there = math.floor((now - empty + ahead + 1) * each + 0.000000001)
  local number = math.min(wanted, math.max(there, 0))
  if number ~= 0 then
    empty = math.max(empty + number / each, full)
    keep(key, string.format('%.3f', empty), empty - full)
  end
  return number, (now - empty) * each
end

local function take_in_span(key, each, burst, wanted, span, at)
  local pace, part, counts, idle, total = PACE * each, math.floor(now / span * SLOTS), {}, true, 0
  local words = (call('GET', key) or ''):gmatch('%S+')
  local empty, paced, last = tonumber(words() or 0), tonumber(words() or 0), tonumber(words() or 0)
  -- Else they are parts of another span, or none.
  if last > 0 and last - part < KEPT then
    local past = math.max(part - last, 0)
    part, idle = last + past, past >= SLOTS
    for word in words do
      local back, number = word:match('(%d+):(%d+)')
      back, number = back + past, tonumber(number)
      if back < KEPT then
        counts[back] = number
        total = total + number
      end
    end
  end
  local full, full_pace = now - (idle and burst / each or span / 2), now - AT_ONCE * burst / pace
  empty, paced = math.max(empty, full), math.max(paced, full_pace)
  local most = math.ceil(each * span * OVER - 0.000000001) - total
  local left = math.min((now - empty) * each, (now - paced) * pace, most)
  local number = math.min(wanted, math.max(math.floor(left + each + 0.000000001), 0))
  if number == 0 then return 0, left end
  empty, paced = math.max(empty + number / each, full), math.max(paced + number / pace, full_pace)
  local back = number > 0 and 0 or math.max(part - math.floor(at / span * SLOTS), 0)
  if back < KEPT then
    local counted = math.max(number, -(counts[back] or 0))
    counts[back] = (counts[back] or 0) + counted
    most = most - counted
  end
  local parts = {string.format('%.3f %.3f %.0f', empty, paced, part)}
  for each_back = 0, KEPT - 1 do
    if (counts[each_back] or 0) > 0 then
      parts[#parts + 1] = each_back .. ':' .. counts[each_back]
    end
  end
  keep(key, table.concat(parts, ' '), 2 * span)
  return number, math.min((now - empty) * each, (now - paced) * pace, most)
end

local answers = {}
for first = 1, #ARGV, 7 do
  local key = P .. 't:' .. ARGV[first]
  local each, burst = tonumber(ARGV[first + 1]) / 1000000, tonumber(ARGV[first + 2])
  local wanted, ahead = tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4]) * 1000000
  local span, at = tonumber(ARGV[first + 5]) * 1000000, tonumber(ARGV[first + 6]) * 1000000
  local number, left
  if span > 0 then
    number, left = take_in_span(key, each, burst, wanted, span, at)
  else
    number, left = take(key, each, burst, wanted, ahead)
  end
  local told = string.format('%.6f', now / 1000000)
  answers[#answers + 1] = {tostring(number), string.format('%.6f', left), told}
end
return answers
