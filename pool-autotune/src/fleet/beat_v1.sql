-- The budget of a fleet, version 1. May be run again. See pool_autotune::fleet.
select pg_advisory_xact_lock(7813320617140);  -- two that create it at once would collide
create schema if not exists pool_autotune;

create table if not exists pool_autotune.installed(
  proto int primary key,
  at timestamptz not null);

-- One row per role: everything that concerns more than one process is read and written under its lock.
create table if not exists pool_autotune.budget(
  role name primary key,
  proto int not null default 1,
  total int not null default 0,
  reserve int not null default 0,      -- for the connections of processes that join
  sum_cap int not null default 0,      -- sum of lease.cap
  excess int not null default 0,       -- sessions that no row counts
  shared int not null default 0,       -- what the shares were made of
  boot timestamptz not null,
  epoch int not null default 1,        -- counts servers: another, or the same anew
  settle_until timestamptz not null,   -- until then nothing is raised
  ttl interval not null,
  members int not null default 0,
  floors int not null default 0,
  swept timestamptz not null default '-infinity',
  is_stale bool not null default true, -- whether shares have to be made anew
  knee bigint[]                        -- version, the most worth sharing (0: all), until when, the trial, ..
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 500);

-- One row per process.
create table if not exists pool_autotune.lease(
  role name not null,
  pod bigint not null,
  label text not null,
  seq bigint not null,
  expires timestamptz not null,
  epoch int not null,
  cap int not null,                    -- the most it may believe it has
  share int not null,                  -- what the policy would give it
  weight int not null,                 -- in thousandths
  floor int not null,
  need int not null,
  want int not null,
  dials int not null,                  -- dials that it may have under way
  dial_for interval not null,          -- how long one may take
  total int,                           -- what it was told to share, if anything
  reserve int,
  beaten timestamptz,                  -- when it last beat
  report bigint[],                     -- what it did: in use, of that in full pools, rate, of which trial, ..
  primary key (role, pod)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 500);

-- A table that is new may stand in for one that was lost, under which rights were given. There were none
-- if no tagged session exists, on a server that was never promoted and is up for longer than any lease.
do $$
declare since timestamptz := clock_timestamp();
begin
  begin
    if pg_postmaster_start_time() < since - interval '60 s'
      and left(pg_walfile_name(pg_current_wal_lsn()), 8) = '00000001'
      and not exists (select 1 from pg_stat_activity
        where application_name like 'pa1:%' and pid <> pg_backend_pid())
    then since := '-infinity'; end if;
  exception when others then null;
  end;
  insert into pool_autotune.installed values (1, since) on conflict do nothing;
end $$;

-- What the functions below know of the server.

create or replace function pool_autotune.clock() returns timestamptz language sql volatile as
$$ select clock_timestamp() $$;

create or replace function pool_autotune.boot() returns timestamptz language sql stable as
$$ select pg_postmaster_start_time() $$;

-- Sessions of this role by application_name. (Parallel workers take no connection, and carry the name.)
create or replace function pool_autotune.sessions(out tag text, out n int)
returns setof record language sql stable as $$
  select coalesce(application_name, ''), count(*)::int from pg_stat_get_activity(null)
  where usesysid = (select oid from pg_roles where rolname = current_user)
    and coalesce(backend_type, 'client backend') = 'client backend'
  group by 1 $$;

-- Connections that this role may have: its limit, or what the server has less what it keeps for
-- superusers, what other roles have open, and a twentieth.
create or replace function pool_autotune.room() returns int language sql stable as $$
  with s as (
    select current_setting('max_connections')::int most,
      current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0) kept,
      (select count(*)::int from pg_stat_get_activity(null) a
       where a.usesysid is not null and a.usesysid <> r.oid
         and coalesce(a.backend_type, 'client backend') = 'client backend') others,
      case when r.rolconnlimit >= 0 then r.rolconnlimit end role_limit
    from pg_roles r where r.rolname = current_user)
  select greatest(0, least(role_limit, most - kept - others - greatest(2, least(10, most / 20))))
  from s $$;

create or replace function pool_autotune.seen(p bigint) returns int language sql stable as
$$ select coalesce(sum(n), 0)::int from pool_autotune.sessions() where tag = 'pa1:' || p $$;

-- Water-filling: clamp(weight * level, least, most) for the level at which they make up b, rounded by
-- the largest remainder, what is left over going first to its holders. Least and most are floor and
-- need where the needs exceed b, otherwise need and want.
create or replace function pool_autotune.shares(b int) returns table(pod bigint, share int)
language sql stable as $$
  with q as materialized (
    select pod, weight::float8 w, least(floor, want) f, greatest(need, least(floor, want)) n,
      want d, cap
    from pool_autotune.lease where role = current_user and expires >= pool_autotune.clock()),
  k as materialized (select coalesce(sum(n), 0) > b scarce from q),
  l as materialized (
    select pod, w, cap, (case when scarce then f else least(n, greatest(d, f)) end)::float8 f,
      (case when scarce then least(n, greatest(d, f)) else d end)::float8 d from q, k),
  e as (select f / w t, w s from l union all select d / w, -w from l),
  c as (select t, sum(s) over o cs, sum(s * t) over o ct, row_number() over o i from e
        window o as (order by t, s desc rows unbounded preceding)),
  z as (select coalesce(sum(f), 0) f, coalesce(sum(d), 0) d from l),
  g as (select c.*, z.f + t * cs - ct level from c, z),
  th as materialized (
    select case when z.d <= b then 'infinity'::float8 when z.f >= b then 0
      else (select (b - z.f + ct) / cs from g where cs > 1e-9 and level <= b + 1e-9
            order by i desc limit 1) end theta
    from z),
  x as (select pod, d, cap,
          greatest(f, least(d, case when theta = 'infinity' then d else w * theta end)) v
        from l, th),
  y as (select pod, d, cap, v, floor(v + 1e-9)::int base from x),
  r as (select pod, base, d,
          row_number() over (order by (base < d and v - base > 1e-9) desc, (cap > base) desc,
            v - base desc, pod) rn,
          least(b, (select d from z))::int - sum(base) over () spare
        from y)
  select pod, base + case when (select f from z) < b and rn <= spare and base < d then 1 else 0 end
  from r $$;

create or replace function pool_autotune.beat_v1(
  me bigint, sq bigint, p_cap int, p_bound int, p_dialing int,
  p_ttl_ms int, p_dials int, p_dial_ms int,
  p_ask bool, p_label text, p_weight int, p_floor int, p_need int, p_want int, p_total int, p_reserve int,
  p_report bigint[] default null, p_knee bigint[] default null,
  out o_grant int, out o_seen int, out o_late bool, out o_settling bool,
  out o_total int, out o_reserve int, out o_members int, out o_floors int, out o_counted int,
  out o_now bigint, out o_knee bigint[], out o_sums bigint[])
language plpgsql volatile as $$
#variable_conflict use_column
declare
  b pool_autotune.budget;
  m pool_autotune.lease;
  now_ timestamptz;
  ttl interval := p_ttl_ms * interval '1 ms';
  mine text := 'pa1:' || me;
  old int;
  held int;
  lim int;
  mycap int;
  owed int;
  swept bool := false;
  changed bool := false;
begin
  -- Behind a pooler this session is another program's next, and what the server shows is the pooler's.
  if current_setting('pool_autotune.pod', true) is distinct from me::text then
    raise exception 'this session was not opened by process %: a pooler stands in between', me
      using errcode = 'PA002';
  end if;
  -- Each statement below has to see what was committed while the first waited for its lock.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'a beat needs read committed, not %', current_setting('transaction_isolation')
      using errcode = 'PA003';
  end if;
  loop
    select * into b from pool_autotune.budget where role = current_user for update;
    exit when found;
    insert into pool_autotune.budget(role, boot, settle_until, ttl)
      select current_user, pool_autotune.boot(), at + ttl, ttl
      from pool_autotune.installed where proto = 1
      on conflict do nothing;
  end loop;
  if b.proto <> 1 then
    raise exception 'the table is of version %, this is version 1', b.proto using errcode = 'PA001';
  end if;
  now_ := pool_autotune.clock();
  if b.ttl < ttl then b.ttl := ttl; changed := true; end if;
  if b.boot <> pool_autotune.boot() then
    b.boot := pool_autotune.boot();
    b.epoch := b.epoch + 1;
    b.settle_until := now_ + b.ttl;
    b.swept := '-infinity';
    b.knee := null;
    changed := true;
  end if;
  o_settling := now_ < b.settle_until;
  select * into m from pool_autotune.lease where role = current_user and pod = me;
  o_late := m.seq >= sq;
  if o_late then
    o_grant := 0; o_seen := 0; o_total := b.total; o_reserve := b.reserve;
    o_members := b.members; o_floors := b.floors; o_counted := b.sum_cap;
    return;
  end if;
  o_late := false;
  o_now := extract(epoch from now_) * 1000;
  -- What becomes of the knee was found from what was read: not if something else became of it since.
  if p_knee[1] = coalesce(b.knee[1], 0) + 1 then b.knee := p_knee; changed := true; end if;
  old := coalesce(m.cap, 0);

  if now_ >= b.swept + interval '1 s' then
    swept := true;
    if not o_settling then
      -- A process that did not beat on this server while the others waited for it has lapsed.
      update pool_autotune.lease
        set epoch = b.epoch, expires = least(expires, now_ - interval '1 us'), beaten = now_
        where role = current_user and pod <> me and epoch <> b.epoch;
      delete from pool_autotune.lease
        where role = current_user and pod <> me and expires < now_ - dial_for
          and pool_autotune.seen(pod) = 0;
      if found then b.is_stale := true; end if;
      -- Its sessions count, and the dials it may have begun; rights that it did not use go back.
      update pool_autotune.lease l
        set cap = least(cap, x.k + dials),
          expires = case when x.k > 0 then now_ - interval '1 us' else expires end
        from (select pod, pool_autotune.seen(pod) k from pool_autotune.lease
          where role = current_user and pod <> me and expires < now_) x
        where l.role = current_user and l.pod = x.pod;
      if found then b.is_stale := true; end if;
    end if;
  end if;

  m.share := coalesce(m.share, least(p_floor, p_want));
  -- Where the rights stay as they are, what the server shows makes no difference.
  if swept or p_ask or o_settling or m.pod is null or p_bound > p_cap or p_cap <> old
    or least(m.share, p_want) <> old
  then
    -- Sessions of this process, and those of the role beyond what is counted for their processes.
    select coalesce(sum(s.n) filter (where s.tag = mine), 0),
        coalesce(sum(greatest(0, s.n - coalesce(l.cap, 0))) filter (where s.tag <> mine), 0)
      into o_seen, b.excess
      from pool_autotune.sessions() s
      left join pool_autotune.lease l on l.role = current_user and 'pa1:' || l.pod = s.tag;
  end if;
  held := greatest(p_cap, least(p_bound, coalesce(o_seen, 0) + p_dialing));
  -- Also for one that has to wait: its floor is to pull the shares of the others down.
  insert into pool_autotune.lease values (current_user, me, p_label, sq, now_ + ttl, b.epoch, old,
      m.share, p_weight, p_floor, p_need, p_want, p_dials,
      p_dial_ms * interval '1 ms', p_total, p_reserve, now_, p_report)
    on conflict (role, pod) do update set label = excluded.label, seq = excluded.seq,
      expires = excluded.expires, epoch = excluded.epoch, weight = excluded.weight,
      floor = excluded.floor, need = excluded.need, want = excluded.want, dials = excluded.dials,
      dial_for = excluded.dial_for, total = excluded.total, reserve = excluded.reserve,
      beaten = excluded.beaten, report = excluded.report;
  if m.pod is null or (m.weight, m.floor, m.need, m.want, m.total, m.reserve)
    is distinct from (p_weight, p_floor, p_need, p_want, p_total, p_reserve)
  then b.is_stale := true; changed := true; end if;

  if swept then
    declare was int := b.shared;
    begin
      select coalesce(sum(cap), 0), count(*) filter (where expires >= now_),
          coalesce(sum(least(floor, want)) filter (where expires >= now_), 0),
          least(min(total) filter (where expires >= now_), pool_autotune.room()),
          max(reserve) filter (where expires >= now_),
          array[coalesce(sum(report[1]) filter (where expires >= now_), 0),
            coalesce(sum(report[2]) filter (where expires >= now_), 0),
            coalesce(sum(report[3]) filter (where expires >= now_), 0),
            coalesce(sum(report[1]) filter (where is_of_trial), 0),
            coalesce(sum(report[5]) filter (where is_of_trial), 0),
            coalesce(sum(report[6]) filter (where is_of_trial), 0),
            coalesce(sum(report[7]) filter (where is_of_trial), 0),
            coalesce(sum(report[8]) filter (where is_of_trial), 0),
            coalesce(sum(case when is_of_trial then report[9] else cap * 1000 end), 0)]
        into b.sum_cap, b.members, b.floors, b.total, b.reserve, o_sums
        from (select *, coalesce(expires >= now_ and report[4] = b.knee[4], false) is_of_trial
          from pool_autotune.lease where role = current_user) l;
      b.reserve := coalesce(b.reserve, greatest(least(2, b.total / 8), b.total * 3 / 100));
      b.swept := now_;
      b.shared := b.total - greatest(b.reserve, b.excess);
      if b.knee[2] > 0 and o_now < b.knee[3] then b.shared := least(b.shared, b.knee[2]); end if;
      if b.is_stale or was <> b.shared then
        update pool_autotune.lease l set share = s.share
          from pool_autotune.shares(b.shared
            - (select coalesce(sum(cap), 0)::int from pool_autotune.lease
               where role = current_user and expires < now_)) s
          where l.role = current_user and l.pod = s.pod and l.share <> s.share;
        select share into m.share from pool_autotune.lease where role = current_user and pod = me;
        b.is_stale := false;
      end if;
      -- Those that hold more than their shares learn it at once where others wait for it: as many of them as
      -- it takes. Lost, this costs time only.
      select coalesce(sum(least(share, want) - cap) filter (where cap < least(share, want)), 0)
          + b.sum_cap - b.shared
        into owed from pool_autotune.lease where role = current_user and expires >= now_;
      -- A queue that some listener does not read may fill up, and the beat must not fail for it.
      if owed > 0 and not o_settling and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('pa1:' || pod, '') from (
          select pod, sum(cap - share) over (order by cap - share desc, pod) - (cap - share) paid
          from pool_autotune.lease
          where role = current_user and expires >= now_ and pod <> me and cap > share) h
          where paid < owed order by paid limit 100;
      end if;
    end;
  end if;

  lim := greatest(0, b.total - greatest(b.reserve, b.excess) - (b.sum_cap - old));
  if o_settling then
    -- A live lease is registered again, and nothing is raised; above its share only what there is room for.
    if p_cap = 0 then held := least(held, old); end if;
    o_grant := least(held, p_cap, greatest(lim, least(m.share, p_want)));
    mycap := held;
  else
    -- What is counted never grows past what is free.
    held := least(held, greatest(old, lim));
    o_grant := greatest(0, least(m.share, p_want, greatest(held, lim)));
    mycap := greatest(held, o_grant);
  end if;
  if mycap <> old then
    update pool_autotune.lease set cap = mycap where role = current_user and pod = me;
    b.sum_cap := b.sum_cap - old + mycap;
    b.is_stale := true;
  end if;
  if mycap <> old or swept or changed then
    update pool_autotune.budget set total = b.total, reserve = b.reserve, sum_cap = b.sum_cap,
      excess = b.excess, shared = b.shared, boot = b.boot, epoch = b.epoch,
      settle_until = b.settle_until, ttl = b.ttl, members = b.members, floors = b.floors, swept = b.swept, is_stale = b.is_stale,
      knee = b.knee
      where role = current_user;
  end if;
  -- A raise has to outlast a crash of the server; all else may be lost.
  if mycap <= old then perform set_config('synchronous_commit', 'off', true); end if;
  o_total := b.total; o_reserve := b.reserve; o_members := b.members; o_floors := b.floors;
  o_counted := b.sum_cap; o_knee := b.knee;
end $$;

-- Ends the sessions of processes that have not beaten for as long; returns how many. A machine that is frozen
-- so gives back what it holds.
create or replace function pool_autotune.reap(me bigint, after_ms int) returns int language sql volatile as $$
  select count(pg_terminate_backend(a.pid))::int
  from pool_autotune.lease l join pg_stat_get_activity(null) a on a.application_name = 'pa1:' || l.pod
  where l.role = current_user and l.pod <> me
    and a.usesysid = (select oid from pg_roles where rolname = current_user)
    and l.beaten < pool_autotune.clock() - after_ms * interval '1 ms'
    and l.expires < pool_autotune.clock() $$;
