-- ARGV: name, token, ttl in ms. Answers whether this token holds the lock.
if not held or held[1] ~= token then return 0 end
lasts(name, now, tonumber(ARGV[3]))
wake(name)
return 1
