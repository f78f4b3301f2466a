"""Networks whose units or layers were shuffled, put in order again. No attack of the catalogue needs this."""
