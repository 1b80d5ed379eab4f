//! `Code`: names an error in one word, for answers and metrics.

use broker::Rejected;

hub::words! {
    /// Grouped by the counters that use them.
    pub(crate) enum Code {
        // `sse_gateway_refused_total` alone.
        REFUSED {
            BackendForbidden = "backend_forbidden",
            BackendUnauthorized = "backend_unauthorized",
            BadHead = "bad_head",
            BadHeartbeat = "bad_heartbeat",
            BadLimit = "bad_limit",
            BadProxyHeader = "bad_proxy_header",
            BadSince = "bad_since",
            BadTicket = "bad_ticket",
            BadTicketRequest = "bad_ticket_request",
            CrossSite = "cross_site",
            ForeignHost = "foreign_host",
            FrameFlood = "frame_flood",
            HeaderTimeout = "header_timeout",
            HeaderTooLarge = "header_too_large",
            HistoryUnavailable = "history_unavailable",
            MaxChannelRatePerAddress = "max_channel_rate_per_address",
            MaxStreams = "max_streams",
            MaxStreamsPerAddress = "max_streams_per_address",
            MaxStreamsPerSubject = "max_streams_per_subject",
            MaxStreamRate = "max_stream_rate",
            MaxStreamRatePerAddress = "max_stream_rate_per_address",
            MaxOpenChannels = "max_open_channels",
            MaxSocketsPerAddress = "max_sockets_per_address",
            MaxTickets = "max_tickets",
            TicketsOff = "tickets_off",
            TooManyChannels = "too_many_channels",
            UntrustedProxy = "untrusted_proxy",
        }
        // `sse_gateway_published_total`, too.
        BOTH {
            AuthorizationUnavailable = "authorization_unavailable",
            BadChannel = "bad_channel",
            BadQuery = "bad_query",
            BodyTimeout = "body_timeout",
            BrokenBody = "broken_body",
            Busy = "busy",
            ForbiddenChannel = "forbidden_channel",
            MaxRefusedTokensPerAddress = "max_refused_tokens_per_address",
            NoChannel = "no_channel",
            TokenAlgorithm = "token_algorithm",
            TokenAudience = "token_audience",
            TokenExpired = "token_expired",
            TokenIssuer = "token_issuer",
            TokenMalformed = "token_malformed",
            TokenNotYetValid = "token_not_yet_valid",
            TokenSignature = "token_signature",
            TokenSubject = "token_subject",
            TokenUnknown = "token_unknown",
            TokenUnknownKey = "token_unknown_key",
            TooLarge = Rejected::TooLarge.as_str(),
            Unauthorized = "unauthorized",
            UnknownHeader = "unknown_header",
            UnknownParameter = "unknown_parameter",
        }
        // `sse_gateway_published_total` alone.
        PUBLISHED {
            BadEnvelope = Rejected::BadEnvelope.as_str(),
            BadEvent = Rejected::BadEvent.as_str(),
            BadIdempotencyKey = "bad_idempotency_key",
            BadLine = "bad_line",
            BadSetting = "bad_setting",
            BatchQuery = "batch_query",
            CannotBeStored = "cannot_be_stored",
            EmptyBatch = "empty_batch",
            IdempotencyKeyReused = "idempotency_key_reused",
            MaxPublishRate = "max_publish_rate",
            NotUtf8 = Rejected::NotUtf8.as_str(),
            OneChannel = "one_channel",
            PublishingOff = "publishing_off",
            RedisDidNotAnswer = "redis_did_not_answer",
            RedisTakesNoWrites = "redis_takes_no_writes",
            RedisUnreachable = "redis_unreachable",
            TooManyLines = "too_many_lines",
            UnsupportedMediaType = "unsupported_media_type",
        }
        // Neither.
        UNCOUNTED {
            MethodNotAllowed = "method_not_allowed",
            NotFound = "not_found",
        }
    }
}
