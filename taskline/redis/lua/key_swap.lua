-- key_swap
-- ARGV: key, what it must hold, value, '1' to set it and '0' to delete the key, token of this
-- call, ttl in ms or ''. Answers whether that was done, if it was to set also by the first attempt.
local key = P .. 'g:' .. ARGV[1]
local found = call('HMGET', key, 'v', 't')
if found[2] == ARGV[5] then return 1 end
if found[1] ~= ARGV[2] then return 0 end
if ARGV[4] == '0' then
  call('UNLINK', key)
  return 1
end
call('HSET', key, 'v', ARGV[3], 't', ARGV[5])
if ARGV[6] == '' then
  call('PERSIST', key)
else
  call('PEXPIRE', key, ARGV[6])
end
return 1
