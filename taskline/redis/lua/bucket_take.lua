-- bucket_take
-- ARGV: for each ask: bucket, tokens a second, burst, number wanted, seconds ahead.
-- Answers with the number taken and the tokens left of each, as text.
-- As taskline/backends/permits.py does it: a bucket is the time, in us, at which it is empty.
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local answers = {}
for first = 1, #ARGV, 5 do
  local key = P .. 't:' .. ARGV[first]
  local each, burst = tonumber(ARGV[first + 1]) / 1000000, tonumber(ARGV[first + 2])
  local wanted, ahead = tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4]) * 1000000
  local full = now - burst / each
  local empty = math.max(tonumber(call('GET', key) or full), full)
  local there = math.floor((now - empty + ahead + 1) * each + 0.000000001)
  local number = math.min(wanted, math.max(there, 0))
  if number ~= 0 then
    empty = math.max(empty + number / each, full)
    local lasts = math.ceil((empty - full) / 1000)
    if lasts > 0 then
      call('SET', key, string.format('%.3f', empty), 'PX', string.format('%.0f', lasts))
    else
      call('UNLINK', key)
    end
  end
  answers[#answers + 1] = {tostring(number), string.format('%.6f', (now - empty) * each)}
end
return answers
