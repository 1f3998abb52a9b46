-- ARGV: now; deliveries by number of message, as JSON, or ''; then id and message of each.
local now = clock(ARGV[1])
local counts = ARGV[2] ~= '' and cjson.decode(ARGV[2]) or {}
for index = 3, #ARGV, 2 do
  local id, value = ARGV[index], ARGV[index + 1]
  if call('HSETNX', P .. 'm', id, value) == 1 then
    local before = call('HGET', P .. 'c', id)
    local deliveries = math.max(tonumber(before or 0), counts[tostring((index - 3) / 2)] or 0)
    if deliveries > 0 then call('HSET', P .. 'h', id, history(0, deliveries, 0)) end
    enqueue(id, value, now)
  end
end
flush()
return 1
