-- ARGV: '1' if this was tried before, queue, number of receipts, receipts;
-- then of each outcome its id, the outcome and its ttl in ms. Answers with the numbers of the lost.
local number = tonumber(ARGV[3])
local last, ids, kept, lost = 3 + number, {}, {}, {}
for index = 1, number do ids[index] = ARGV[3 + index]:sub(11) end
local pasts = number > 0 and call('HMGET', P .. 'h', unpack(ids)) or {}
for index = 1, number do
  local past = pasts[index]
  if past and past:sub(1, 8) == ARGV[3 + index]:sub(1, 8) then
    kept[#kept + 1] = ids[index]
  else
    lost[#lost + 1] = index - 1
  end
end
if #kept > 0 then
  call('HDEL', P .. 'm', unpack(kept))
  call('HDEL', P .. 'h', unpack(kept))
  call('ZREM', P .. 'e:' .. ARGV[2], unpack(kept))
end
if ARGV[1] == '1' then
  -- What is gone was acknowledged by the attempt whose answer did not arrive.
  local still = {}
  for _, index in ipairs(lost) do
    if call('HEXISTS', P .. 'm', ids[index + 1]) == 1 then still[#still + 1] = index end
  end
  lost = still
end
if #ARGV > last then
  local done = {}
  for _, id in ipairs(kept) do done[id] = true end
  for index = last + 1, #ARGV, 3 do
    if done[ARGV[index]] then store(ARGV[index], ARGV[index + 1], ARGV[index + 2]) end
  end
end
return lost
