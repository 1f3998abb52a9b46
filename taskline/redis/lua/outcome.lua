-- Outcomes are '>dI4c0d' sent, deliveries, state, ttl; then the frame. Final states are capitals.
local function outranks(old, value)
  local old_sent, old_count = struct.unpack('>dI4', old)
  local sent, count = struct.unpack('>dI4', value)
  if old_sent ~= sent then return old_sent > sent end
  if old_count ~= count then return old_count > count end
  return old:byte(13) < 97 and value:byte(13) >= 97
end

local function set(key, value, ttl, ...)
  if ttl == '' then return call('SET', key, value, ...) end
  return call('SET', key, value, 'PX', ttl, ...)
end

local function store(id, value, ttl)
  local key = P .. 'o:' .. id
  if not set(key, value, ttl, 'NX') then
    if outranks(call('GETRANGE', key, 0, 12), value) then return false end
    set(key, value, ttl)
  end
  if value:byte(13) < 97 then call('SPUBLISH', key, value) end
  return true
end
