"""Words that everything else uses: units, types, errors, the registry of parts, devices, compiled programs."""
