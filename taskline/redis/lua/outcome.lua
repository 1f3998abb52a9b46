-- Outcomes are '>dI4c0d' sent, deliveries, state, ttl; then the frame. Final states are capitals.
local function store(id, value, ttl)
  local key = P .. 'o:' .. id
  local old = call('GETRANGE', key, 0, 12)
  if old ~= '' then
    local old_sent, old_count = struct.unpack('>dI4', old)
    local sent, count = struct.unpack('>dI4', value)
    if old_sent > sent then return false end
    if old_sent == sent then
      if old_count > count then return false end
      if old_count == count and old:byte(13) < 97 and value:byte(13) >= 97 then return false end
    end
  end
  if ttl == '' then
    call('SET', key, value)
  else
    call('SET', key, value, 'PX', ttl)
  end
  if value:byte(13) < 97 then call('SPUBLISH', key, value) end
  return true
end
