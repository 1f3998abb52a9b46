-- ARGV: of each outcome its id, the outcome, its ttl in ms and Celery's key for it. There it is
-- written and published, unless a later one has been stored since.
local HEAD = 21
for index = 1, #ARGV, 4 do
  local value, key = ARGV[index + 1], ARGV[index + 3]
  if call('GET', P .. 'o:' .. ARGV[index]) == value then
    local frame = value:sub(HEAD + 1)
    set(key, frame, ARGV[index + 2])
    call('PUBLISH', key, frame)
  end
end
