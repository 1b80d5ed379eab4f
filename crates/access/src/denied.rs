//! `Denied`: the reasons for a refusal.

use crate::grant::MAX_SUBJECT;

/// The reason for a refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A private channel, and no credential.
    #[error(
        "this needs a credential: Authorization: Bearer TOKEN, access_token=TOKEN, ticket=TICKET, or a \
         cookie, whichever are configured"
    )]
    NoCredential,
    /// The token is refused.
    #[error(transparent)]
    Token(#[from] TokenRefused),
    /// There is no such ticket.
    #[error("the ticket is unknown, used or too old: fetch a new one")]
    Ticket,
    /// The backend refused.
    #[error("the authorization backend denied the request")]
    Backend {
        /// Whether it knows the user.
        known: bool,
    },
    /// A page of another site sends the request.
    #[error(
        "a page of another site asks, which is not in --cors-origins: it may not use its visitor's cookies"
    )]
    CrossSite,
    /// The credential is not for this channel.
    #[error("this credential is not for channel {0}")]
    Channel(String),
    /// The credential is for no channel to publish to.
    #[error("this credential is not for publishing: it has no channel that it may publish to")]
    Publishing,
    /// Too many tokens of the address were refused.
    #[error("too many tokens from this address were refused: they are checked again in a moment")]
    RefusedTokens,
    /// The store or the backend does not answer.
    #[error("authorization is temporarily unavailable")]
    Unavailable,
}

/// The reason why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// No key or credential fits.
    #[error("the token is unknown")]
    Unknown,
    /// It cannot be read.
    #[error("the token is no JSON Web Token with the claims that are needed")]
    Malformed,
    /// Its algorithm is not accepted.
    #[error("the token is not signed with an algorithm that is taken")]
    Algorithm,
    /// Its key is unknown.
    #[error("the token names no key that is known")]
    UnknownKey,
    /// Its signature is wrong.
    #[error("the token's signature is not that of its key")]
    Signature,
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// It is not valid yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It is for another audience.
    #[error("the token is for another audience")]
    Audience,
    /// It is from another issuer.
    #[error("the token is from another issuer")]
    Issuer,
    /// Its subject is too long.
    #[error("the token's sub has more than {MAX_SUBJECT} bytes")]
    Subject,
}
