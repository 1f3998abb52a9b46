-- A lock is a hash: t its holder's token, f the fence, e the end of the lease in ms,
-- r the token that released it last. It is kept for a day after the lease, so that fences
-- grow even if the server's clock is put back.
local DAY = 86400000

local function lease(key, now)
  local found = call('HMGET', key, 't', 'f', 'e')
  if found[3] and tonumber(found[3]) > now then
    return {found[1], found[2], tonumber(found[3]) - now}
  end
end

local function lasts(key, now, ttl)
  call('HSET', key, 'e', string.format('%.0f', now + ttl))
  call('PEXPIRE', key, string.format('%.0f', ttl + DAY))
end

-- Who waits looks again.
local function wake(key)
  call('SPUBLISH', key, '1')
end

local name, token = P .. 'l:' .. ARGV[1], ARGV[2]
local now = clock('')
local held = lease(name, now)
