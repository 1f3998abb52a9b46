-- ARGV: now, queue, number of receipts, receipts; then of each the letter's queue and the letter.
local now, queue, number = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local kept, lost = held(4, 3 + number)
for _, each in ipairs(kept) do
  local index = 4 + number + 2 * (each.index - 4)
  local letter_queue, letter = ARGV[index], ARGV[index + 1]
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
