"""Pages nobody wants in a training corpus, written for the purpose: other languages, spam, filler."""

from __future__ import annotations

OTHER_LANGUAGES = {
    "de": {
        "titles": (
            "Unser kleines Dorf",
            "Rezepte aus der Küche",
            "Wandern am Fluss",
            "Aus dem Garten",
            "Die Geschichte der Mühle",
        ),
        "sentences": (
            "Am Morgen gehen die Kinder über die alte Brücke zur Schule und lachen dabei sehr laut.",
            "Der Müller hat in diesem Jahr viel Korn gemahlen, weil der Sommer trocken und warm war.",
            "Wir haben lange überlegt, ob wir den Zaun blau oder grün streichen sollen.",
            "Im Herbst sammeln die Leute {a} Körbe voller Äpfel und kochen daraus süßes Mus.",
            "Die Bücherei ist jeden Dienstag von {a} bis achtzehn Uhr geöffnet und kostet nichts.",
            "Wer den Weg am Ufer entlang nimmt, sieht nach {a} Minuten die Ruine der Burg.",
            "Meine Großmutter sagte immer, dass ein gutes Brot vor allem Zeit und Ruhe braucht.",
            "Niemand wusste, woher die Katze kam, aber nach einer Woche gehörte sie zum Haus.",
            "Für den Teig braucht man {a} Löffel Mehl, etwas Milch und eine Prise Salz.",
            "Als der Regen endlich aufhörte, standen die Wiesen bis zum Wald unter Wasser.",
            "Der Zug fährt um {a} Uhr ab und hält unterwegs an jedem kleinen Bahnhof.",
            "Trotz des schlechten Wetters kamen mehr als {a} Gäste zum Fest auf dem Marktplatz.",
        ),
    },
    "fr": {
        "titles": (
            "Notre petit village",
            "Recettes de famille",
            "Promenade au bord de l'eau",
            "Le jardin au printemps",
            "Histoire du moulin",
        ),
        "sentences": (
            "Le matin, les enfants traversent le vieux pont pour aller à l'école en chantant.",
            "Le boulanger ouvre sa boutique à {a} heures et toute la rue sent le pain chaud.",
            "Nous avons longtemps hésité entre une porte bleue et une porte verte.",
            "En automne, on ramasse {a} paniers de pommes et on prépare de la compote.",
            "La bibliothèque est ouverte tous les mardis et l'entrée est gratuite pour tout le monde.",
            "En suivant le sentier pendant {a} minutes, on arrive aux ruines du château.",
            "Ma grand-mère disait toujours qu'une bonne soupe demande surtout de la patience.",
            "Personne ne savait d'où venait le chat, mais il est resté dans la maison.",
            "Pour la pâte, il faut {a} cuillères de farine, un peu de lait et du sel.",
            "Quand la pluie s'est arrêtée, les champs étaient couverts d'eau jusqu'à la forêt.",
            "Le train part à {a} heures et s'arrête dans toutes les petites gares.",
            "Malgré le mauvais temps, plus de {a} personnes sont venues à la fête du village.",
        ),
    },
    "es": {
        "titles": (
            "Nuestro pequeño pueblo",
            "Recetas de la abuela",
            "Un paseo junto al río",
            "El huerto en verano",
            "Historia del molino",
        ),
        "sentences": (
            "Por la mañana los niños cruzan el puente viejo para ir a la escuela cantando.",
            "El panadero abre la tienda a las {a} y toda la calle huele a pan caliente.",
            "Hemos dudado mucho tiempo entre una puerta azul y una puerta verde.",
            "En otoño la gente recoge {a} cestas de manzanas y prepara mermelada para el invierno.",
            "La biblioteca está abierta todos los martes y la entrada es gratis para los vecinos.",
            "Siguiendo el camino durante {a} minutos se llega a las ruinas del castillo.",
            "Mi abuela decía siempre que una buena sopa necesita sobre todo paciencia.",
            "Nadie sabía de dónde venía el gato, pero se quedó a vivir en la casa.",
            "Para la masa hacen falta {a} cucharadas de harina, un poco de leche y sal.",
            "Cuando dejó de llover, los campos estaban cubiertos de agua hasta el bosque.",
            "El tren sale a las {a} y se detiene en todas las estaciones pequeñas.",
            "A pesar del mal tiempo, más de {a} personas vinieron a la fiesta de la plaza.",
        ),
    },
}
SPAM_PHRASES = (
    "cheap watches",
    "best price pills",
    "free casino bonus",
    "win big money",
    "online poker games",
    "fast weight loss",
    "designer bags sale",
    "instant cash loans",
)
SPAM_LINES = (
    "Click here now to get the best {p} with free shipping to all countries today!",
    "Buy {p} and save up to ninety percent on the order that you place today!",
    "This is the number one shop for {p} and you will not find it for less!",
)
LOREM = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore magna aliqua.",
    "The design of this page is not done and the text that you see is there to fill the space of the box.",
    "Here is the place where the name of the shop will be and the list of things that we have to sell.",
    "Lorem ipsum is what the people of the print trade put on a page that has no words of its own.",
    "We will write to you when the new page is ready and the pictures of the house have come back.",
    "The colours and the size of the letters can be changed in the menu of the site at any time.",
)
SHORT = (
    "This page has moved to another place.",
    "Nothing to see here yet, so come back soon.",
    "Under construction; please be patient with us.",
    "You must log in before reading.",
    "Sorry, that file does not exist any more.",
    "Our shop is closed until Monday.",
)
MENU = (
    "Home",
    "About",
    "Contact",
    "News",
    "Archive",
    "Shop",
    "Basket",
    "Log in",
    "Register",
    "Help",
    "Search",
    "Sitemap",
    "Gallery",
    "Forum",
    "Links",
    "Downloads",
    "Press",
    "Jobs",
    "Partners",
    "Feedback",
)
