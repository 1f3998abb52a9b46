-- Forgets some of the oldest revocations that have ended.
local now, ended = clock(''), {}
for _, wish in ipairs(call('ZRANGE', P .. 'v', 0, SOME - 1)) do
  local _, ends = struct.unpack('>dd', wish)
  if ends <= now then ended[#ended + 1] = wish end
end
if #ended > 0 then call('ZREM', P .. 'v', unpack(ended)) end
return #ended
