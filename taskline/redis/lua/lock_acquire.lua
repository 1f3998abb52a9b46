-- ARGV: name, token, ttl in ms. Answers with the lease: token, fence, ms left.
if held then return held end
local ttl, time = tonumber(ARGV[3]), call('TIME')
local last = tonumber(call('HGET', name, 'f') or 0)
local fence = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
call('HSET', name, 't', token, 'f', fence)
lasts(name, now, ttl)
return {token, fence, ttl}
