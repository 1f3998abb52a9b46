-- ARGV: key, member, ttl in ms. Answers with the size of the set.
local key = P .. 'k:' .. ARGV[1]
call('SADD', key, ARGV[2])
call('PEXPIRE', key, ARGV[3])
return call('SCARD', key)
