-- ARGV: now. Brings every queue up to date.
local now = clock(ARGV[1])
for _, queue in ipairs(call('SMEMBERS', P .. 'q')) do move_on(queue, now) end
flush()
return 1
