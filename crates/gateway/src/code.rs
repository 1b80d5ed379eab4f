//! `Code`: names an error in one word, for answers and metrics.

use strum::{IntoStaticStr, VariantArray};

/// An error. The words of rejected payloads are those of [`broker::Rejected`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Code {
    AuthorizationUnavailable,
    BackendForbidden,
    BackendUnauthorized,
    BadChannel,
    BadEnvelope,
    BadEvent,
    BadHead,
    BadHeartbeat,
    BadIdempotencyKey,
    BadLimit,
    BadLine,
    BadProxyHeader,
    BadQuery,
    BadSetting,
    BadSince,
    BadTicket,
    BadTicketRequest,
    BatchQuery,
    BodyTimeout,
    BrokenBody,
    Busy,
    CannotBeStored,
    CrossSite,
    EmptyBatch,
    ForbiddenChannel,
    ForeignHost,
    FrameFlood,
    HeaderTimeout,
    HeaderTooLarge,
    HistoryUnavailable,
    IdempotencyKeyReused,
    MaxChannelRatePerAddress,
    MaxOpenChannels,
    MaxPublishRate,
    MaxRefusedTokensPerAddress,
    MaxSocketsPerAddress,
    MaxStreamRate,
    MaxStreamRatePerAddress,
    MaxStreams,
    MaxStreamsPerAddress,
    MaxStreamsPerSubject,
    MaxTickets,
    MethodNotAllowed,
    NoChannel,
    NotCopied,
    NotFound,
    NotUtf8,
    OneChannel,
    PublishingOff,
    RedisDidNotAnswer,
    RedisTakesNoWrites,
    RedisUnreachable,
    TicketsOff,
    TokenAlgorithm,
    TokenAudience,
    TokenExpired,
    TokenIssuer,
    TokenMalformed,
    TokenNotYetValid,
    TokenSignature,
    TokenSubject,
    TokenUnknown,
    TokenUnknownKey,
    TooLarge,
    TooManyChannels,
    TooManyLines,
    Unauthorized,
    UnknownHeader,
    UnknownParameter,
    UnsupportedMediaType,
    UntrustedProxy,
}

/// The counters that count an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counters {
    /// `sse_gateway_refused_total`
    Refused,
    /// `sse_gateway_published_total`
    Published,
    Both,
    Neither,
}

impl Code {
    /// The word. It is stable, even if the name in the code changes.
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }

    /// The errors that `sse_gateway_refused_total` counts.
    pub(crate) fn refusals() -> impl Iterator<Item = Self> {
        Self::counted_by(Counters::Refused)
    }

    /// The errors that `sse_gateway_published_total` counts.
    pub(crate) fn of_publishing() -> impl Iterator<Item = Self> {
        Self::counted_by(Counters::Published)
    }

    fn counted_by(counters: Counters) -> impl Iterator<Item = Self> {
        let codes = Self::VARIANTS.iter().copied();
        codes.filter(move |code| [counters, Counters::Both].contains(&code.counters()))
    }

    fn counters(self) -> Counters {
        match self {
            Self::BackendForbidden
            | Self::BackendUnauthorized
            | Self::BadHead
            | Self::BadHeartbeat
            | Self::BadLimit
            | Self::BadProxyHeader
            | Self::BadSince
            | Self::BadTicket
            | Self::BadTicketRequest
            | Self::CrossSite
            | Self::ForeignHost
            | Self::FrameFlood
            | Self::HeaderTimeout
            | Self::HeaderTooLarge
            | Self::HistoryUnavailable
            | Self::MaxChannelRatePerAddress
            | Self::MaxOpenChannels
            | Self::MaxSocketsPerAddress
            | Self::MaxStreamRate
            | Self::MaxStreamRatePerAddress
            | Self::MaxStreams
            | Self::MaxStreamsPerAddress
            | Self::MaxStreamsPerSubject
            | Self::MaxTickets
            | Self::TicketsOff
            | Self::TooManyChannels
            | Self::UntrustedProxy => Counters::Refused,
            Self::AuthorizationUnavailable
            | Self::BadChannel
            | Self::BadQuery
            | Self::BodyTimeout
            | Self::BrokenBody
            | Self::Busy
            | Self::ForbiddenChannel
            | Self::MaxRefusedTokensPerAddress
            | Self::NoChannel
            | Self::TokenAlgorithm
            | Self::TokenAudience
            | Self::TokenExpired
            | Self::TokenIssuer
            | Self::TokenMalformed
            | Self::TokenNotYetValid
            | Self::TokenSignature
            | Self::TokenSubject
            | Self::TokenUnknown
            | Self::TokenUnknownKey
            | Self::TooLarge
            | Self::Unauthorized
            | Self::UnknownHeader
            | Self::UnknownParameter => Counters::Both,
            Self::BadEnvelope
            | Self::BadEvent
            | Self::BadIdempotencyKey
            | Self::BadLine
            | Self::BadSetting
            | Self::BatchQuery
            | Self::CannotBeStored
            | Self::EmptyBatch
            | Self::IdempotencyKeyReused
            | Self::MaxPublishRate
            | Self::NotUtf8
            | Self::OneChannel
            | Self::PublishingOff
            | Self::NotCopied
            | Self::RedisDidNotAnswer
            | Self::RedisTakesNoWrites
            | Self::RedisUnreachable
            | Self::TooManyLines
            | Self::UnsupportedMediaType => Counters::Published,
            Self::MethodNotAllowed | Self::NotFound => Counters::Neither,
        }
    }
}

#[cfg(test)]
mod tests {
    use broker::Rejected;

    use super::*;

    #[test]
    fn a_rejected_payload_has_one_word() {
        for reason in Rejected::VARIANTS {
            let mut codes = Code::VARIANTS.iter();
            assert!(
                codes.any(|code| code.as_str() == reason.as_str()),
                "{reason:?}"
            );
        }
    }
}
