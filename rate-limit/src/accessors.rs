//! What each service offers of the one inside. This file is the same in `tower-capacity` and `rate-limit`.

macro_rules! inner_service_accessors {
    () => {
        /// The inner service.
        #[must_use]
        pub const fn get_ref(&self) -> &S {
            &self.inner
        }

        /// The inner service, mutably.
        #[must_use]
        pub const fn get_mut(&mut self) -> &mut S {
            &mut self.inner
        }

        /// Takes the inner service out.
        #[must_use]
        pub fn into_inner(self) -> S {
            self.inner
        }
    };
}

pub(crate) use inner_service_accessors;
