-- ARGV: key, ttl in ms, members. Answers with the size of the set.
local key = P .. 'k:' .. ARGV[1]
call('SADD', key, unpack(ARGV, 3))
call('PEXPIRE', key, ARGV[2])
return call('SCARD', key)
