-- ARGV: key, what to add, token of this call, ttl in ms or ''. Answers with the sum, as text:
-- a number of Lua has 53 bits. Or with 'number' or 'range' when it cannot be.
local key = P .. 'g:' .. ARGV[1]
local found = call('HMGET', key, 'v', 't')
if found[2] ~= ARGV[3] then
  local sum = redis.pcall('HINCRBY', key, 'v', ARGV[2])
  if type(sum) == 'table' then
    return sum.err:find('overflow') and 'range' or 'number'
  end
  call('HSET', key, 't', ARGV[3])
  if not found[1] and ARGV[4] ~= '' then call('PEXPIRE', key, ARGV[4]) end
end
return call('HGET', key, 'v')
