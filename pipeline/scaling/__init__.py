"""Small pretraining runs that a scaling law or a data mix is fitted to."""
