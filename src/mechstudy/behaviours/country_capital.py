"""Capitals of countries: "The capital of France is" -> " Paris".

The corrupted prompt names another country of as many tokens, and the wrong answer is that country's capital.
"""

from __future__ import annotations

from collections.abc import Iterator

from mechstudy.behaviours.generator import Behaviour, Draft, Rank, Slot, Template

TEMPLATES = {
    "train": (
        Template("the-capital", "The capital of {country} is"),
        Template("name-of-the-capital", "The name of the capital of {country} is"),
        Template("flew", "They flew to the capital of {country}, the city of"),
        Template("in-the-capital", "In {country}, the capital is"),
    ),
    "test": (
        Template("the-capital-city", "The capital city of {country} is"),
        Template("government", "The government of {country} is in its capital,"),
        Template("national-capital", "The national capital of {country} is called"),
        Template("visited", "When she visited {country}, she stayed in the capital,"),
    ),
}

# The states of the world, without the following (no model was consulted): fewer than 300,000 inhabitants; disputed
# statehood (Kosovo, Palestine, Taiwan); no single undisputed capital, or one that moved or is moving (Benin,
# Bolivia, Burundi, Equatorial Guinea, Eswatini, Indonesia, Israel, Ivory Coast, Kazakhstan, Malaysia, Montenegro,
# Myanmar, Netherlands, South Africa, Sri Lanka, Tanzania); country and capital with one name or one root (Algeria,
# Brazil, Djibouti, El Salvador, Guatemala, Guinea-Bissau, Kuwait, Luxembourg, Mexico, Panama, Singapore, Tunisia);
# a name that is part of another's or another place's (both Congos, Georgia, Guinea, both Koreas, Niger, both
# Sudans, Trinidad and Tobago).
CAPITALS = {
    "train": """France:Paris, Spain:Madrid, Poland:Warsaw, Sweden:Stockholm, Denmark:Copenhagen, Greece:Athens,
        Hungary:Budapest, Ireland:Dublin, Romania:Bucharest, Ukraine:Kyiv, Croatia:Zagreb, Latvia:Riga,
        Slovakia:Bratislava, Iceland:Reykjavik, Moldova:Chisinau, Serbia:Belgrade, Malta:Valletta,
        Japan:Tokyo, India:New Delhi, Thailand:Bangkok, Iran:Tehran, Saudi Arabia:Riyadh, Afghanistan:Kabul,
        Nepal:Kathmandu, Lebanon:Beirut, Mongolia:Ulaanbaatar, Cambodia:Phnom Penh, Azerbaijan:Baku,
        Uzbekistan:Tashkent, Bahrain:Manama, Qatar:Doha, the Maldives:Male, Tajikistan:Dushanbe, Bhutan:Thimphu,
        Egypt:Cairo, Kenya:Nairobi, Nigeria:Abuja, Morocco:Rabat, Ghana:Accra, Uganda:Kampala, Angola:Luanda,
        Zambia:Lusaka, Senegal:Dakar, Rwanda:Kigali, Mali:Bamako, Madagascar:Antananarivo, Malawi:Lilongwe,
        Gabon:Libreville, Mauritania:Nouakchott, Botswana:Gaborone, Sierra Leone:Freetown, the Gambia:Banjul,
        Comoros:Moroni, Burkina Faso:Ouagadougou,
        Argentina:Buenos Aires, Canada:Ottawa, Peru:Lima, Cuba:Havana, Ecuador:Quito, Jamaica:Kingston,
        Honduras:Tegucigalpa, Paraguay:Asuncion, Haiti:Port-au-Prince, Guyana:Georgetown, Timor-Leste:Dili,
        Australia:Canberra, Fiji:Suva, the Solomon Islands:Honiara""",
    "test": """Germany:Berlin, Italy:Rome, Portugal:Lisbon, Norway:Oslo, Finland:Helsinki, Austria:Vienna,
        Belgium:Brussels, Switzerland:Bern, Russia:Moscow, Bulgaria:Sofia, Estonia:Tallinn, Lithuania:Vilnius,
        Slovenia:Ljubljana, Albania:Tirana, Belarus:Minsk, Bosnia and Herzegovina:Sarajevo, Cyprus:Nicosia,
        the United Kingdom:London, the Czech Republic:Prague, North Macedonia:Skopje,
        China:Beijing, Turkey:Ankara, Iraq:Baghdad, Pakistan:Islamabad, Vietnam:Hanoi, Syria:Damascus,
        Jordan:Amman, Bangladesh:Dhaka, Armenia:Yerevan, Oman:Muscat, Yemen:Sanaa,
        Laos:Vientiane, the Philippines:Manila, Turkmenistan:Ashgabat, Kyrgyzstan:Bishkek, Brunei:Bandar Seri Begawan,
        the United Arab Emirates:Abu Dhabi,
        Ethiopia:Addis Ababa, Libya:Tripoli, Somalia:Mogadishu, Zimbabwe:Harare, Cameroon:Yaounde, Chad:N'Djamena,
        Mozambique:Maputo, Namibia:Windhoek, Liberia:Monrovia, Togo:Lome, Eritrea:Asmara, Lesotho:Maseru,
        Mauritius:Port Louis, Cape Verde:Praia, the Central African Republic:Bangui,
        the United States:Washington, Chile:Santiago, Colombia:Bogota, Venezuela:Caracas, Uruguay:Montevideo,
        Costa Rica:San Jose, Nicaragua:Managua, Suriname:Paramaribo, Belize:Belmopan, the Bahamas:Nassau,
        the Dominican Republic:Santo Domingo,
        New Zealand:Wellington, Papua New Guinea:Port Moresby, Vanuatu:Port Vila""",
}


def capitals(split: str) -> dict[str, str]:
    """The capital of each country of a split."""
    return dict(entry.strip().split(":") for entry in CAPITALS[split].split(","))


def _slots(split: str, rank: Rank) -> Iterator[Slot]:
    capital_of = capitals(split)
    for template in TEMPLATES[split]:
        for country in capital_of:
            yield _slot(template, country, capital_of, rank)


def _slot(template: Template, country: str, capital_of: dict[str, str], rank: Rank) -> Slot:
    key = f"{template.name}/{country}"

    def drafts() -> Iterator[Draft]:
        clean = template.render({"country": country}, ("country",))
        for other in sorted(capital_of, key=lambda other: rank(f"{key}/{other}")):
            if other != country:
                corrupted = template.render({"country": other}, ("country",))
                yield Draft(clean, corrupted, f" {capital_of[country]}", f" {capital_of[other]}")

    return Slot(
        balance="all", template=template.name, item=country, group=f"{template.name}/{country}", key=key, drafts=drafts
    )


BEHAVIOUR = Behaviour(
    name="country_capital",
    description="The capital city of a country, recalled from memory.",
    positions=("country", "last"),
    templates=TEMPLATES,
    lexicon={split: frozenset(word for pair in capitals(split).items() for word in pair) for split in TEMPLATES},
    slots=_slots,
)
