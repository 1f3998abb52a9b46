-- ARGV: key, value, token of this call, ttl in ms or '', '1' to keep what is there.
-- Answers whether it was set, also by this call's first attempt.
local key = P .. 'g:' .. ARGV[1]
if ARGV[5] == '1' and call('EXISTS', key) == 1 then
  return call('HGET', key, 't') == ARGV[3] and 1 or 0
end
call('HSET', key, 'v', ARGV[2], 't', ARGV[3])
if ARGV[4] == '' then
  call('PERSIST', key)
else
  call('PEXPIRE', key, ARGV[4])
end
return 1
