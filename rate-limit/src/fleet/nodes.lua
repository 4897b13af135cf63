-- Counts the nodes of a fleet: those heard of within the last while.
--
-- KEYS[1]  the nodes
-- ARGV     this node, milliseconds after which a silent one is gone
--
-- Returns how many there are, this one included.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now - ARGV[2]))
-- After the clock was set back, those that seem to come from the future start anew.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now + ARGV[2]), '+inf')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
