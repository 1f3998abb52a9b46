-- ARGV: 'y' or 'y:<queue>', first and last from the newest. Answers with the letters.
local ids = call('ZRANGE', P .. ARGV[1], ARGV[2], ARGV[3], 'REV')
if #ids == 0 then return {} end
return call('HMGET', P .. 'x', unpack(ids))
