-- ARGV: now, number of receipts, receipts; then of each its queue, the letter's, and the letter.
local now, number = clock(ARGV[1]), tonumber(ARGV[2])
local kept, lost = held(3, 2 + number)
for _, each in ipairs(kept) do
  local index = 3 + number + 3 * (each.index - 3)
  local queue, letter_queue, letter = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  local _, _, deliveries = struct.unpack('>ddI4I4', each.past)
  call('ZREM', P .. 'e:' .. queue, each.id)
  call('HDEL', P .. 'm', each.id)
  call('HDEL', P .. 'h', each.id)
  drop_letter(each.id)
  local order = string.format('%.0f', tokens(1, now))
  call('HSET', P .. 'x', each.id, struct.pack('>H', #letter_queue) .. letter_queue .. letter)
  call('HSET', P .. 'c', each.id, deliveries)
  call('ZADD', P .. 'y', order, each.id)
  call('ZADD', P .. 'y:' .. letter_queue, order, each.id)
  call('SADD', P .. 'q', letter_queue)
end
return lost
