-- places_list
-- ARGV: name. Answers with id, run and ms left of each place that is held.
local now = clock('')
local ends, runs = P .. 'p:' .. ARGV[1], P .. 'i:' .. ARGV[1]
local answers = {}
local found = call('ZRANGEBYSCORE', ends, '(' .. now, '+inf', 'WITHSCORES')
for index = 1, #found, 2 do
  local id = found[index]
  answers[#answers + 1] = {id, call('HGET', runs, id), tonumber(found[index + 1]) - now}
end
return answers
