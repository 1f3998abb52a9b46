-- A dead letter is '>H' the size of its queue's name, the name, then what the client packed.
local function drop_letter(id)
  local letter = call('HGET', P .. 'x', id)
  if not letter then return nil end
  local queue = letter:sub(3, 2 + letter:byte(1) * 256 + letter:byte(2))
  call('HDEL', P .. 'x', id)
  call('ZREM', P .. 'y', id)
  call('ZREM', P .. 'y:' .. queue, id)
  local deliveries = call('HGET', P .. 'c', id)
  call('HDEL', P .. 'c', id)
  return tonumber(deliveries or 0)
end
