-- ARGV: key, ttl in ms or ''. Answers whether there is such a key.
local key = P .. 'g:' .. ARGV[1]
if ARGV[2] ~= '' then return call('PEXPIRE', key, ARGV[2]) end
call('PERSIST', key)
return call('EXISTS', key)
