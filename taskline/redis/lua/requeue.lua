-- ARGV: now; then id, message and deliveries of each. Answers with the numbers of those requeued.
local now, requeued = clock(ARGV[1]), {}
for index = 2, #ARGV, 3 do
  local id, value = ARGV[index], ARGV[index + 1]
  local deliveries = drop_letter(id)
  if deliveries then
    requeued[#requeued + 1] = (index - 2) / 3
    if call('HSETNX', P .. 'm', id, value) == 1 then
      deliveries = math.max(deliveries, tonumber(ARGV[index + 2]))
      if deliveries > 0 then call('HSET', P .. 'h', id, history(0, deliveries, 0)) end
      enqueue(id, value, now)
    end
  end
end
flush()
return requeued
