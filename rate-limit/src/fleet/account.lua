-- The account of one key: GCRA in level form, exact in integers below 2^53.
--
-- KEYS[1]  the account
-- ARGV     mode, version, n, least, then for each policy: id, price, drain, capacity, cells, shadow
--
-- A cell costs `price`, the level drains by `drain` a microsecond, and never exceeds `capacity`.
-- The value is "version:last", then ":id:price:drain:level" for each policy; policies that the
-- caller does not know are kept. An account that is not there owes nothing, so expiry loses nothing.
--
--   take    grants as many of n requests as fit, or none if fewer than least would
--   charge  charges the cells whether they fit or not, up to a level of least times the capacity
--   refund  gives the cells back
--   owe     charges as much as `cells` says in parts of a cell, up to least times the capacity
--   raise   owes as much as that at least: for accounts that were lost, by who remembers them
--   peek    changes nothing
--
-- Returns {granted, then for each policy: its level, how many of the requests it was charged for}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local mode, version = ARGV[1], tonumber(ARGV[2])
local n, least = tonumber(ARGV[3]), tonumber(ARGV[4])

local stored, last, kept = -1, now, {}
local raw = redis.call('GET', KEYS[1])
if raw then
  local fields = {}
  for field in string.gmatch(raw, '[^:]+') do fields[#fields + 1] = field end
  stored, last = tonumber(fields[1]), tonumber(fields[2])
  for i = 3, #fields, 4 do
    kept[fields[i]] = {tonumber(fields[i + 1]), tonumber(fields[i + 2]), tonumber(fields[i + 3])}
  end
end

-- A clock that was set back by up to a second stands still; one set back further starts anew.
local elapsed, changed = now - last, false
if elapsed < 0 then
  if elapsed >= -1000000 then now = last else changed = true end
  elapsed = 0
end
for _, policy in pairs(kept) do
  policy[3] = math.max(0, policy[3] - elapsed * policy[2])
end

local policies, granted = {}, n
for i = 5, #ARGV, 6 do
  local id, price, drain = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local capacity, cells = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
  local level, old = 0, kept[id]
  if old then
    level = old[3]
    -- Another quota: as many cells are owed as before, and a new version cuts them to its burst.
    if old[1] ~= price then level = math.ceil(level / old[1] * price) end
    if stored < version then level = math.min(level, capacity) end
    -- From now on it drains by the new one, even if nothing is granted.
    changed = changed or old[1] ~= price or old[2] ~= drain
  end
  local fits = n
  if cells > 0 then
    fits = math.max(0, math.min(n, math.floor((capacity - level) / (price * cells))))
  end
  local shadow = ARGV[i + 5] == '1'
  if not shadow then granted = math.min(granted, fits) end
  policies[#policies + 1] = {id, price, drain, capacity, cells, level, fits, shadow}
end
if granted < least then granted = 0 end

local reply = {granted}
for _, policy in ipairs(policies) do
  local price, capacity, cells, level, fits = policy[2], policy[4], policy[5], policy[6], policy[7]
  local after = level
  if mode == 'take' then
    fits = math.min(fits, granted)
    after = level + fits * price * cells
  elseif mode == 'charge' then
    after = math.max(level, math.min(level + price * cells, least * capacity))
  elseif mode == 'refund' then
    after = math.max(0, level - price * cells)
  elseif mode == 'raise' then
    after = math.max(level, math.min(cells, capacity))
  elseif mode == 'owe' then
    after = math.max(level, math.min(level + cells, least * capacity))
  end
  changed = changed or after ~= level
  kept[policy[1]] = {price, policy[3], after}
  reply[#reply + 1], reply[#reply + 2] = after, fits
end

if changed then
  local value, life = {string.format('%.0f:%.0f', math.max(stored, version), now)}, 0
  for id, policy in pairs(kept) do
    if policy[3] > 0 then
      value[#value + 1] = string.format('%s:%.0f:%.0f:%.0f', id, policy[1], policy[2], policy[3])
      life = math.max(life, math.ceil(policy[3] / policy[2] / 1000))
    end
  end
  if #value == 1 then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], table.concat(value, ':'), 'PX', string.format('%.0f', life + 1))
  end
end
return reply
