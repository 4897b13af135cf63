-- The budget of a fleet, version 1, in one hash: see pool_autotune::fleet. It does what beat_v1.sql does,
-- with the sessions that processes saw on the Postgres whose connections are divided.
--
-- KEYS: the hash. ARGV: the process, its beat (seq, cap, bound, dialing), its terms (ttl, dials, dial_for,
-- in ms), label, weight, floor, need, want, total and reserve (or -1), its own sessions (or -1), when the
-- sessions of all were counted (or -1) and on which server that was told, what the process did and what is to
-- become of the knee (numbers with spaces between them), and then each name of a session and its count.

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Another after a restart or a failover: its clock is another, and writes may have been lost.
local function boot()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local key = KEYS[1]
local me, seq, p_cap, bound, dialing = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]),
  tonumber(ARGV[5])
local ttl, dials, dial_for = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local label, weight = ARGV[9], tonumber(ARGV[10])
local floor, need, want = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local total, reserve = tonumber(ARGV[14]), tonumber(ARGV[15])
local own, counted_at, counted_on = tonumber(ARGV[16]), tonumber(ARGV[17]), ARGV[18]
local function numbers(text)
  local all = {}
  for number in string.gmatch(text, '%S+') do all[#all + 1] = tonumber(number) end
  return all
end
local report, knee = numbers(ARGV[19]), numbers(ARGV[20])
local seen = own

local now, server = clock(), boot()
local packed = redis.call('HMGET', key, 'budget', me)
local b = packed[1] and cmsgpack.unpack(packed[1])
local m = packed[2] and cmsgpack.unpack(packed[2])
if not b then
  -- A hash that is new may stand in for one that was lost, under which rights were given.
  b = { proto = 1, total = 0, reserve = 0, sum_cap = 0, excess = 0, shared = 0, boot = server, epoch = 1,
    settle_until = now + ttl, ttl = ttl, members = 0, floors = 0, swept = -1, is_stale = true,
    counted = now }
end
if b.proto ~= 1 then
  return redis.error_reply('PA001 the hash is of version ' .. b.proto .. ', this is version 1')
end
b.ttl = math.max(b.ttl, ttl)
if b.boot ~= server then
  b.boot, b.epoch, b.settle_until, b.swept, b.counted = server, b.epoch + 1, now + b.ttl, -1, now
  b.knee = nil
end
local is_settling = now < b.settle_until
local sums
local function reply(grant, is_late)
  return { grant, seen, is_late and 1 or 0, is_settling and 1 or 0, b.total, b.reserve, b.members,
    b.floors, b.sum_cap, string.format('%.0f', now), server, b.knee or {}, sums or {} }
end
if m and m.seq >= seq then return reply(0, true) end
local old = m and m.cap or 0
-- What becomes of the knee was found from what was read: not if something else became of it since.
if knee[1] and knee[1] == (b.knee and b.knee[1] or 0) + 1 then b.knee = knee end

-- Sessions by process. A count is older than this beat: it says nothing of leases that ended after it.
local sessions, strangers
if counted_at >= 0 then
  sessions, strangers = {}, 0
  for i = 21, #ARGV, 2 do
    local pod, n = string.match(ARGV[i], '^pa1:(%d+)$'), tonumber(ARGV[i + 1])
    if pod then sessions[pod] = n else strangers = strangers + n end
  end
  seen = sessions[me] or 0
  b.counted = now
end
local sees = sessions and counted_on == server

-- A server that has far less than it had is a new one: what was granted before is not dialled again there.
local rows, sweeps = nil, now >= b.swept + 1000 or total >= 0 and total * 10 < b.total * 9
if sweeps then
  rows = {}
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if all[i] ~= 'budget' then rows[all[i]] = cmsgpack.unpack(all[i + 1]) end
  end
  if not is_settling then
    for pod, row in pairs(rows) do
      local was_cap, was_expires, is_gone = row.cap, row.expires, false
      if pod ~= me then
        -- A process that did not beat on this server while the others waited for it has lapsed.
        local was_epoch = row.epoch
        if row.epoch ~= b.epoch then
          row.epoch, row.expires = b.epoch, math.min(row.expires, now - 1)
        end
        if sees and row.expires < counted_at then
          -- Its sessions count, and the dials it may have begun; rights that it did not use go back.
          local n = sessions[pod] or 0
          is_gone = n == 0 and row.expires < counted_at - row.dial_for
          row.cap = math.min(row.cap, n + row.dials)
          if n > 0 then row.expires = counted_at - 1 end
        elseif own >= 0 and b.counted < now - 2 * b.ttl then
          -- No process counts: what it had is taken for gone one more lease after its own.
          is_gone = row.expires < now - row.dial_for - b.ttl
        end
        if is_gone then
          redis.call('HDEL', key, pod)
          rows[pod] = nil
        elseif row.cap ~= was_cap or row.expires ~= was_expires or row.epoch ~= was_epoch then
          redis.call('HSET', key, pod, cmsgpack.pack(row))
        end
        if is_gone or row.cap ~= was_cap then b.is_stale = true end
      end
    end
  end
end

-- Sessions that no row counts, but for those of this process. Without a count, what the last one left.
if sessions then
  local caps, names = {}, {}
  for pod in pairs(sessions) do
    if pod ~= me then names[#names + 1] = pod end
  end
  if rows then
    for pod, row in pairs(rows) do caps[pod] = row.cap end
  elseif #names > 0 then
    for i, row in ipairs(redis.call('HMGET', key, unpack(names))) do
      if row then caps[names[i]] = cmsgpack.unpack(row).cap end
    end
  end
  b.excess = strangers
  for _, pod in ipairs(names) do b.excess = b.excess + math.max(0, sessions[pod] - (caps[pod] or 0)) end
end

local held = seen < 0 and math.max(p_cap, bound) or math.max(p_cap, math.min(bound, seen + dialing))
if not m or m.weight ~= weight or m.floor ~= floor or m.need ~= need or m.want ~= want
  or m.total ~= total or m.reserve ~= reserve
then
  b.is_stale = true
end
-- Also for one that has to wait: its floor is to pull the shares of the others down.
m = { seq = seq, expires = now + ttl, epoch = b.epoch, cap = old, share = m and m.share or math.min(floor, want),
  label = label, weight = weight, floor = floor, need = need, want = want, dials = dials,
  dial_for = dial_for, total = total, reserve = reserve, report = report }

-- Water-filling, as the function pool_autotune.shares has it.
local function divide(all, live)
  local needs, lows, highs, parts = 0, 0, 0, {}
  for pod, row in pairs(live) do
    local least = math.min(row.floor, row.want)
    local mid = math.min(math.max(row.need, least), row.want)
    needs = needs + mid
    parts[#parts + 1] = { pod = pod, row = row, least = least, mid = mid, w = row.weight }
  end
  table.sort(parts, function(x, y) return x.pod < y.pod end)
  local scarce, levels = needs > all, {}
  for _, part in ipairs(parts) do
    part.low = scarce and part.least or part.mid
    part.high = scarce and part.mid or part.row.want
    lows, highs = lows + part.low, highs + part.high
    levels[#levels + 1] = { t = part.low / part.w, w = part.w }
    levels[#levels + 1] = { t = part.high / part.w, w = -part.w }
  end
  local theta
  if highs <= all then theta = math.huge
  elseif lows >= all then theta = 0
  else
    table.sort(levels, function(x, y) return x.t < y.t end)
    local filled, rising, at = lows, 0, 0
    for _, level in ipairs(levels) do
      local next_filled = filled + rising * (level.t - at)
      if next_filled > all then break end
      filled, rising, at = next_filled, rising + level.w, level.t
    end
    theta = rising > 1e-9 and at + (all - filled) / rising or at
  end
  local given = 0
  for _, part in ipairs(parts) do
    local v = theta == math.huge and part.high or math.max(part.low, math.min(part.high, part.w * theta))
    part.base = math.floor(v + 1e-9)
    part.rest = v - part.base
    given = given + part.base
  end
  table.sort(parts, function(x, y)
    local a, c = x.base < x.high and x.rest > 1e-9, y.base < y.high and y.rest > 1e-9
    if a ~= c then return a end
    a, c = x.row.cap > x.base, y.row.cap > y.base
    if a ~= c then return a end
    if x.rest ~= y.rest then return x.rest > y.rest end
    return x.pod < y.pod
  end)
  local spare = lows < all and math.min(all, highs) - given or 0
  for i, part in ipairs(parts) do
    part.share = part.base + ((i <= spare and part.base < part.high) and 1 or 0)
  end
  return parts
end

if sweeps then
  rows[me] = m
  local was, live, lapsed, least, most = b.shared, {}, 0, nil, -1
  b.sum_cap, b.members, b.floors, sums = 0, 0, 0, { 0, 0, 0, 0, 0, 0, 0, 0, 0 }
  for pod, row in pairs(rows) do
    b.sum_cap = b.sum_cap + row.cap
    local did = row.expires >= now and row.report or {}
    local is_of_trial = b.knee and did[4] == b.knee[4]
    for i = 1, 3 do sums[i] = sums[i] + (did[i] or 0) end
    if is_of_trial then
      sums[4] = sums[4] + did[1]
      for i = 5, 9 do sums[i] = sums[i] + did[i] end
    else
      sums[9] = sums[9] + row.cap * 1000
    end
    if row.expires >= now then
      live[pod] = row
      b.members = b.members + 1
      b.floors = b.floors + math.min(row.floor, row.want)
      if row.total >= 0 then least = math.min(least or row.total, row.total) end
      most = math.max(most, row.reserve)
    else
      lapsed = lapsed + row.cap
    end
  end
  -- While Postgres is down, none counts: what was known of it stays.
  b.total = least or b.total
  b.reserve = most
  if most < 0 then
    b.reserve = math.max(math.min(2, math.floor(b.total / 8)), math.floor(b.total * 3 / 100))
  end
  b.swept = now
  b.shared = b.total - math.max(b.reserve, b.excess)
  if b.knee and b.knee[2] > 0 and now < b.knee[3] then b.shared = math.min(b.shared, b.knee[2]) end
  if b.is_stale or was ~= b.shared then
    for _, part in ipairs(divide(b.shared - lapsed, live)) do
      if part.row.share ~= part.share then
        part.row.share = part.share
        if part.pod ~= me then redis.call('HSET', key, part.pod, cmsgpack.pack(part.row)) end
      end
    end
    b.is_stale = false
  end
  -- Those that hold more than their shares learn it at once where others wait for it: as many of them as it
  -- takes. Lost, this costs time only.
  local owed, holders = b.sum_cap - b.shared, {}
  for pod, row in pairs(live) do
    owed = owed + math.max(0, math.min(row.share, row.want) - row.cap)
    if row.cap > row.share and pod ~= me then holders[#holders + 1] = { pod = pod, over = row.cap - row.share } end
  end
  table.sort(holders, function(x, y) return x.over > y.over end)
  for i = 1, math.min(#holders, 100) do
    if owed <= 0 or is_settling then break end
    redis.pcall('PUBLISH', key .. ':' .. holders[i].pod, '')
    owed = owed - holders[i].over
  end
  -- What no process has touched for a day is of no fleet.
  redis.call('PEXPIRE', key, 86400000)
end

local free = math.max(0, b.total - math.max(b.reserve, b.excess) - (b.sum_cap - old))
local grant
if is_settling then
  -- A live lease is registered again, and nothing is raised; above its share only what there is room for.
  if p_cap == 0 then held = math.min(held, old) end
  grant = math.min(held, p_cap)
  -- Unless the total is not known, since Postgres is down, too.
  if b.total > 0 then grant = math.min(grant, math.max(free, math.min(m.share, want))) end
  m.cap = held
else
  -- What is counted never grows past what is free.
  held = math.min(held, math.max(old, free))
  grant = math.max(0, math.min(m.share, want, math.max(held, free)))
  m.cap = math.max(held, grant)
end
if m.cap ~= old then
  b.sum_cap = b.sum_cap - old + m.cap
  b.is_stale = true
end
-- For the next beat, this process is one of the others.
if sessions then b.excess = b.excess + math.max(0, seen - m.cap) end
redis.call('HSET', key, me, cmsgpack.pack(m), 'budget', cmsgpack.pack(b))
return reply(grant, false)
