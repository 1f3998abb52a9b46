-- ARGV: now, queue. Deletes some that wait; answers how many, and 0 when there are no more.
move_on(ARGV[2], clock(ARGV[1]))
flush()
local queue, number = ARGV[2], 0

local function drop(ids)
  if #ids == 0 then return end
  call('HDEL', P .. 'm', unpack(ids))
  call('HDEL', P .. 'h', unpack(ids))
  number = number + #ids
end

local function drop_from(key)
  local ids = call('ZRANGE', key, 0, SOME - 1)
  if #ids > 0 then call('ZREM', key, unpack(ids)) end
  drop(ids)
end

for priority = 0, 9 do
  drop(call('LPOP', lane('r', priority, queue), SOME) or {})
  drop_from(lane('b', priority, queue))
end
drop_from(P .. 'd:' .. queue)
return number
