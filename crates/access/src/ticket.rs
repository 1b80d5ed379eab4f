//! `TicketLookup`: the store of tickets. A ticket is a grant for one connection, valid for a short time. It is for
//! EventSource, which cannot send headers.

use std::{future::Future, pin::Pin};

use crate::{denied::Denied, grant::Grant};

/// The store of the tickets that were issued and not used yet.
pub trait TicketLookup: Send + Sync {
    /// The grant of a ticket. This uses the ticket up.
    ///
    /// # Errors
    /// [`Denied::Ticket`] if there is no such ticket, and [`Denied::Unavailable`] if the store does not answer.
    fn take(
        &self,
        ticket: String,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, Denied>> + Send + '_>>;
}
