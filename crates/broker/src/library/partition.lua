-- The state of a partition: in Redis, and in the memory of this server process.
--
-- This is the first file of the library. Each function is one atomic step. The first key of every function but
-- sse_publish is the clock of a partition. The other keys are declared for Redis Cluster: they share the hash tag of the
-- first, and the library derives their names from it. library.rs writes the settings (PARTITIONS, RULES, MAX_PAYLOAD, the
-- names and the times) in front.
--
-- With a first line that names a library, it is one. Without that line it is a plain script that reads: a Redis that
-- takes no writes refuses functions, and does not refuse scripts.
--
-- Whether this was loaded as a library.
local is_library = redis.register_function ~= nil

-- Ids are handled as two numbers, ms and seq. Both stay below 2^53, where Lua's doubles are exact, because they are
-- made only from the server's time and from other ids of this library.

-- The replicas that have completed a handshake for each partition since this server process started. It is in the
-- library's memory on purpose: a restart or a promotion empties it.
local handshaken = {}
local handshakes = 0
-- The last value of each partition's clock in this process. If the stored clock differs, it was flushed, or another
-- server was the master in between.
local last_clock = {}
-- When each partition's clock was found to be missing, although this process had stored it.
local flushed = {}
-- The server process that each partition's last handshake was for.
local runs = {}
-- By partition: the failover or move by which another server took it over from this one, that is, its number, and the
-- replication id that this server had. Nil while this server is the master.
local retired = {}
-- The id of each partition's newest event that this process has, or a later one.
local newest_event = {}
-- Partitions that have had a recorder since this server process started, unless the last one has stepped down in order.
local recording = {}
-- The server process under which raw messages were recorded last, by partition. The partition's clock stores it too.
local raw = {}
-- Partitions that have moved here with the lease of a recorder that continues to record.
local carried = {}
-- When each partition's recording was last reported as interrupted; removed when an in-sync recorder acquires the
-- lease.
local interrupted_at = {}
-- When each partition's horizon was last moved, in milliseconds of this server's clock.
local lost_at = {}
-- By partition and replica: its subscription and the one before it, the number of the subscription, in their order, and
-- until when this counts without a sign of life. After it was released, only the one before.
local listeners = {}
-- How many subscriptions there were, and the last one of each replica, with its number.
local subscriptions, numbers = 0, {}
-- Each partition's last append of a recorder: its token and number.
local appended = {}
-- How many appends have recorded raw messages, and the token of the last one.
local appends, appender = {}, {}
-- Replicas that have stepped down from a partition. Commands that they sent before may arrive later, and must not make
-- them in sync again.
local stepped_down = {}
local step_downs = 0
-- By partition, while a migration copies it: the replica that copies, and the channels and idempotency keys with events
-- since it last asked. Nil after a restart; then it compares all channels.
local traced = {}
-- By partition, while a migration fills it: when each replica has last tried to use it.
local waiting = {}
-- The server process's run id, its beginning as in the names of pub/sub channels, and whether it is a node of a
-- cluster: from the last handshake.
local this_run, run_part, in_cluster
-- A call ends after the entry with which it exceeds this many bytes, because Redis serves no other client during a
-- call.
local CALL_BYTES = 4 * 1024 * 1024
-- Each entry of an attach counts as this many bytes more, because small entries take time by number. So the channels of
-- an attach that have long histories of small events are spread over several calls.
local ENTRY_COST = 4096
-- Maximum ids in a channel's list, and a quarter more before it is cut. `since=-N` asks for no more.
local MAX_IDS = 10000
-- The list holds this many ids more than `history`, because the stream is trimmed by whole nodes.
local SPARE_IDS = 200
-- Maximum channels and keys that are traced for a migration. With more, it compares all channels.
local MAX_TRACED = 100000
-- For this many expired channels, a partition remembers that they had events.
local MAX_PAST = 100 + 100000 / PARTITIONS

-- Fails for callers that are no gateways. A function runs with the rights of its caller, and backends lack this one.
local function refuse_backends()
  redis.call('PUBSUB', 'NUMSUB')
end

-- The beginning of a run id, as the names of pub/sub channels have it.
local function part_of(run)
  return string.sub(run, 1, 8) .. ':'
end

-- Ends the `prev` of an event that is the first after a horizon.
local FORGOTTEN = '!'

local function text(ms, seq)
  return string.format('%.0f-%.0f', ms, seq)
end

local function parse(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function less(a_ms, a_seq, b_ms, b_seq)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

-- The lowest id of the time that many milliseconds ago.
local function ago(state, milliseconds)
  return text(math.max(0, state.now - milliseconds), 0)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The partition's state as stored. `ms` is nil if Redis has lost it.
--
-- `phase` is that of a migration to another Redis. There, 'filling' until it is open. Here, 'copying' while all works as
-- usual, then 'closing' while only the command `migrate` may append, for a limited time; 'closed' from the commit on, and
-- 'moved' when the other Redis is open.
local function load(keys)
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local stored = redis.call('HMGET', keys[1], 'id', 'horizon', 'kept', 'changed', 'origin', 'wiped', 'migration')
  local state = { key = keys[1], prefix = prefix, now = now_ms() }
  state.kept, state.changed = tonumber(stored[3] or 0), tonumber(stored[4] or 0)
  state.origin, state.wiped = stored[5], tonumber(stored[6] or 0)
  if stored[1] then
    state.ms, state.seq = parse(stored[1])
    state.horizon = stored[2]
  end
  if stored[7] then
    local until_ms
    state.phase, state.migration, state.migrator, until_ms = string.match(stored[7], '^(%l+) (%S+) ?(%S*) ?(%d*)$')
    -- A longer time was written by another server, whose clock was ahead.
    state.closing = (tonumber(until_ms) or 0) - state.now
    if state.phase == 'closing' and (state.closing <= 0 or state.closing > CLOSING) then
      state.phase = 'copying'
    end
  end
  if last_clock[state.key] and last_clock[state.key] ~= stored[1] then
    handshaken[state.key] = nil
    if not stored[1] then
      flushed[state.key] = state.now
    end
  end
  return state
end

local function is_older(id, other)
  local ms, seq = parse(id)
  return less(ms, seq, parse(other))
end

local function clock(state)
  return text(state.ms, state.seq)
end

-- For how many milliseconds a channel without events is known to have had none, if channels are forgotten after
-- `expire`. Events that were appended under earlier rules have expired under those rules.
local function known(state, expire)
  return math.min(expire, math.max(state.kept, state.now - state.changed))
end

-- Whether the clock is older than an id that a replica has seen.
local function is_behind(state, watermark)
  local ms, seq = parse(watermark)
  return not state.ms or less(state.ms, state.seq, ms, seq)
end

-- Whether the partition has moved to another Redis for good, or is about to. Then its clock does not move, because the one
-- there continues from it.
local function is_closed(state)
  return state.phase == 'closed' or state.phase == 'moved'
end

-- Whether a migration keeps events of this caller out.
local function is_shut(state, replica)
  if not state.phase or state.phase == 'copying' or (state.phase == 'closing' and state.migrator == replica) then
    return nil
  elseif state.phase == 'moved' then
    return redis.error_reply('MIGRATED the events of this redis have moved to another one')
  end
  return redis.error_reply('MIGRATING the events of this redis are on their way to or from another one, try again')
end

-- Notes a channel or an idempotency key for a migration that is copying.
local function trace(state, kind, name)
  local traces = traced[state.key]
  if not traces or traces[kind][name] then
    return
  end
  traces[kind][name], traces.count = true, traces.count + 1
  if traces.count > MAX_TRACED then
    traced[state.key] = nil
  end
end

-- Gives out the next id.
local function next_id(state)
  state.seq = state.seq + 1
  local id = clock(state)
  newest_event[state.key] = id
  return id
end

local function store(state)
  local id = clock(state)
  redis.call('HSET', state.key, 'id', id, 'horizon', state.horizon)
  last_clock[state.key] = id
end

-- Moves the clock up to the server's time. Redis has lost events if `lost` is set or there is no clock. It has also
-- lost events if the clock is older than the greatest id that the caller or this process has seen. Then cursors from
-- before now may miss events, so the horizon moves here.
local function tick(state, watermark, lost)
  if is_closed(state) then
    return
  end
  local new, seen_before = not state.ms, false
  if new then
    state.ms, state.seq, lost = 0, 0, true
    raw[state.key] = nil
  end
  for _, seen in ipairs({ watermark, last_clock[state.key] }) do
    if is_behind(state, seen) then
      state.ms, state.seq = parse(seen)
      lost, seen_before = true, true
    end
  end
  local moved = state.now > state.ms
  if moved then
    state.ms, state.seq = state.now, 0
  elseif lost then
    state.seq = state.seq + 1
  end
  if lost then
    state.horizon = clock(state)
    lost_at[state.key] = state.now
  end
  if moved or lost then
    store(state)
  end
  if new then
    redis.call('HSET', state.key, 'run', this_run, 'base', clock(state))
    -- If no one has seen an earlier clock, the deployment begins here. Otherwise the clock was lost, with all channels.
    if seen_before then
      state.wiped = state.now
      redis.call('HSET', state.key, 'wiped', string.format('%.0f', state.now))
    else
      state.origin = state.horizon
      redis.call('HSET', state.key, 'origin', state.origin)
    end
  end
end

-- A caller without a handshake since the server started might append below ids that it has seen.
local BEHIND = 'BEHIND this server has forgotten events and takes no writes'

local function not_ready(keys, replica)
  local partition = handshaken[keys[1]]
  if partition and (not replica or partition[replica]) then
    return nil
  end
  return redis.error_reply('NOTREADY no gateway has handshaken for this server yet, try again')
end
