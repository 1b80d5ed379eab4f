-- Raw messages that the cluster has lost on their way to this node, and other nodes have delivered.

-- By partition and digest: how many times messages were published again, and when the last time was, in milliseconds.
local republished = {}
-- When old entries were removed last.
local cleaned = {}

-- channel, payload, digest, and how many times it was published again as far as the caller knows, of each message
--
-- Publishes messages to the recorders, in the order of this server process, as if they had arrived. Several recorders may
-- notice at the same time that a message is missing. Only a caller that knows of all earlier times is right. Answers how
-- many times each message was published again. Without messages it answers the digests of messages that may still
-- arrive themselves, each with this number.
local function republish(keys, args)
  local refused = not_ready(keys)
  if refused then
    return refused
  end
  local key, now, answers = keys[1], now_ms(), {}
  local prefix = string.sub(key, 1, -1 - #CLOCK)
  local known = republished[key] or {}
  republished[key] = known
  if #args == 0 or not cleaned[key] or now < cleaned[key] or now - cleaned[key] > LATEST then
    cleaned[key] = now
    for digest, last in pairs(known) do
      if last.at > now or now - last.at > LATEST then
        known[digest] = nil
      elseif #args == 0 then
        answers[#answers + 1] = digest
        answers[#answers + 1] = tostring(last.count)
      end
    end
  end
  for i = 1, #args, 4 do
    local channel, payload, digest = args[i], args[i + 1], args[i + 2]
    local count = known[digest] and known[digest].count or 0
    if count == tonumber(args[i + 3]) then
      count = count + 1
      known[digest] = { count = count, at = now }
      redis.call('SPUBLISH', prefix .. REPUBLISHED .. run_part, count .. ' ' .. channel .. '\n' .. payload)
    end
    answers[#answers + 1] = tostring(count)
  end
  return answers
end
